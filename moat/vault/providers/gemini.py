"""The `gemini` grant: a Gemini API key, or the Google login of the Gemini CLI.

The CLI with a login speaks to another API than one with a key, and asks Google what its token is good for
before it uses it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from moat.dataclass import dataclass
from moat.grants import CredentialInfo, CredentialKind, LoginRule
from moat.vault.providers.declared import Injection, Shape, plain
from moat.vault.providers.model import Check, Held
from moat.vault.providers.tool_login import KeyOrLogin

LOGIN_HOSTS = ("cloudcode-pa.googleapis.com",)
SCOPES = "scopes"  # in the metadata of a login
_LIFE = 365 * 24 * 3600  # seconds


@dataclass(frozen=True, slots=True)
class Gemini(KeyOrLogin):
    def placeholder(self, info: CredentialInfo, token: str) -> str:
        if info.kind is CredentialKind.OAUTH:
            return f"ya29.moat-placeholder-not-a-real-token-{token}"
        return self.shape.placeholder(token)

    def logins(self, info: CredentialInfo, placeholder: str) -> tuple[LoginRule, ...]:
        if info.kind is not CredentialKind.OAUTH:
            return ()
        rule = LoginRule(
            credential=info.name,
            hosts=("oauth2.googleapis.com",),
            path="/token",
            about="/tokeninfo",
            access=placeholder,
            refresh=_refresh(placeholder),
            scope=info.metadata.get(SCOPES, ""),
            shared=True,
        )
        return (rule,)

    def files(self, held: Sequence[Held]) -> tuple[tuple[str, bytes], ...]:
        """The CLI asks how to log in unless its settings say so."""
        one = plain(held)
        if one.info.kind is not CredentialKind.OAUTH:
            return (_settings("gemini-api-key"),)
        login = {
            "access_token": one.placeholder,
            "refresh_token": _refresh(one.placeholder),
            "scope": one.info.metadata.get(SCOPES, ""),
            "token_type": "Bearer",
            "expiry_date": int((time.time() + _LIFE) * 1000),
        }
        return (_settings("oauth-personal"), (".gemini/oauth_creds.json", json.dumps(login).encode()))


def _settings(kind: str) -> tuple[str, bytes]:
    """The sandbox is what Moat trusts the workspace in; without a terminal the CLI would refuse to start."""
    security = {"auth": {"selectedType": kind}, "folderTrust": {"enabled": False}}
    settings = {"security": security, "general": {"enableAutoUpdate": False}}
    return ".gemini/settings.json", json.dumps(settings).encode()


def _refresh(placeholder: str) -> str:
    return placeholder.replace("ya29.", "1//", 1)


PROVIDER = Gemini(
    name="gemini",
    summary="Gemini API and the Gemini CLI",
    hosts=("generativelanguage.googleapis.com",),
    opens=LOGIN_HOSTS,
    login_hosts=LOGIN_HOSTS,
    aliases=("google",),
    # Older clients, and the examples of the documentation, have it in the query: `?key=…`.
    injection=Injection("x-goog-api-key", "raw", surfaces=("header", "query")),
    shape=Shape("AIza", 39),
    marks=("AIza",),
    sources=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    variables=("GEMINI_API_KEY",),
    # A key that is none is answered with 400 (API_KEY_INVALID).
    check=Check("generativelanguage.googleapis.com", "/v1beta/models", rejected=(400, 401, 403)),
    where="https://aistudio.google.com/apikey",
)
