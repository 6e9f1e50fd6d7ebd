"""The Google login that the Gemini CLI keeps on this machine: `~/.gemini/oauth_creds.json`.

Google does not replace refresh tokens, so that Moat can renew a copy of the login without the CLI noticing.
"""

from __future__ import annotations

import time
from pathlib import Path

from moat.errors import GrantError
from moat.vault.oauth.tokens import Client, Tokens
from moat.vault.toolfile import read_json

PLACE = "~/.gemini/oauth_creds.json"
TOKEN_HOST = "oauth2.googleapis.com"  # noqa: S105 - a host
# The CLI's own, in its published source. Of a program that users install Google says that its secret is none
# (https://developers.google.com/identity/protocols/oauth2#installed).
_CLIENT = Client(
    token_endpoint=f"https://{TOKEN_HOST}/token",
    client_id="681255809395-oo8ft2oprdrnp9e3aqf6av3hmdib135j.apps.googleusercontent.com",
    client_secret="GOCSPX-" + "4uHgMPm-1o7Sk-geV6Cu5clXFsxl",
    auth_method="client_secret_post",
    resource="",
)


def google_login() -> tuple[Tokens, str] | None:
    """The login and its scopes; None when there is none. Raises GrantError when it cannot be used."""
    path = Path(PLACE).expanduser()
    data = read_json(path, hint="log in with `gemini` again")
    if data is None:
        return None
    match data:
        case {"access_token": str(access), "refresh_token": str(refresh)} if access and refresh:
            ends = data.get("expiry_date")  # milliseconds since the epoch
            life = ends / 1000 - time.time() if isinstance(ends, int | float) else 0.0
            tokens = Tokens(
                client=_CLIENT, access=access, refresh=refresh, obtained_at=time.time(), lifetime=life
            )
            return tokens, str(data.get("scope") or "")
    raise GrantError(f"{path} holds no login that can be renewed", hint="log in with `gemini` again")
