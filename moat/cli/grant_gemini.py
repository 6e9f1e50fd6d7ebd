"""The Google login of the Gemini CLI, as another way to `moat grant gemini`."""

from __future__ import annotations

import argparse
import asyncio

from moat.cli.granting import Wizard, credential, may_take_login
from moat.errors import GrantError
from moat.grants import CredentialKind
from moat.vault.google_login import PLACE, TOKEN_HOST, google_login
from moat.vault.oauth.source import RENEWED_AT
from moat.vault.oauth.tokens import LoginLostError, Tokens, renew
from moat.vault.oauth.web import Web, WebError
from moat.vault.providers.gemini import LOGIN_HOSTS, PROVIDER, SCOPES


def offer(wizard: Wizard, chosen: argparse.Namespace) -> bool:
    """Take the login over if it was asked for, or the user says so. False: he wants to give a key.

    Raises GrantError.
    """
    if not may_take_login(wizard, chosen, PROVIDER.sources):
        return False
    console = wizard.console
    found = google_login()
    if found is None:
        if chosen.method is None:
            return False
        raise GrantError(f"there is no login in {PLACE}", hint="log in with `gemini`, or leave out --method")
    if chosen.method is None and not console.confirm(f"Use the Google login in {PLACE}?", default=True):
        return False
    tokens, scopes = found
    console.print(f"The login goes to {', '.join(LOGIN_HOSTS)} and nowhere else; {TOKEN_HOST} renews it.")
    if wizard.validate:
        tokens = _renewed(wizard, tokens)
    metadata = {"source": "import", RENEWED_AT: TOKEN_HOST, SCOPES: scopes}
    login = credential("gemini", CredentialKind.OAUTH, tokens.encode(), hosts=LOGIN_HOSTS, metadata=metadata)
    wizard.save(login, "Google login saved to {}")
    return True


def _renewed(wizard: Wizard, tokens: Tokens) -> Tokens:
    """That it can be renewed is what shows that it is good. Raises GrantError when it is not."""
    wizard.console.print("Renewing it once...")
    try:
        return asyncio.run(renew(Web(wizard.upstream), tokens))
    except LoginLostError as error:
        raise GrantError(f"{error}; nothing was stored", hint="log in with `gemini` again") from None
    except WebError as error:
        wizard.console.print(f"It could not be renewed now: {error}. It is stored as it is.")
        return tokens
