"""The ChatGPT login of Codex, as another way to `moat grant codex`."""

from __future__ import annotations

import argparse
import datetime as dt

from moat.cli.granting import Wizard, credential, may_take_login
from moat.errors import GrantError
from moat.grants import CredentialKind, Grant
from moat.vault.codex_login import PLACE, CodexLogin, codex_login
from moat.vault.imported import IMPORTED, codex_facts
from moat.vault.providers.model import Check
from moat.vault.providers.openai import LOGIN_HOSTS, PROVIDER

_USAGE = "/backend-api/wham/usage"  # what Codex shows as its limits; costs nothing


def offer(wizard: Wizard, chosen: argparse.Namespace) -> bool:
    """Take the login over if it was asked for, or the user says so. False: an API key is to be granted.

    Raises GrantError.
    """
    if not may_take_login(wizard, chosen, PROVIDER.sources):
        return False
    console = wizard.console
    try:
        found = codex_login(dt.datetime.now(dt.UTC))
    except GrantError as error:
        if chosen.method is not None:
            raise
        console.print(f"{error}.")
        return False
    if found is None:
        return False
    if chosen.method is None and not console.confirm(f"Use the ChatGPT login in {PLACE}?", default=True):
        return False
    console.print(f"The login goes to {', '.join(LOGIN_HOSTS)} and nowhere else.")
    console.print("The Codex on this machine keeps it alive, and Moat takes over what it has then.")
    if wizard.validate:
        _validate(wizard, found)
    login = credential(
        "openai",
        CredentialKind.OAUTH,
        found.token,
        hosts=LOGIN_HOSTS,
        expires_at=found.expires_at,
        metadata={"source": IMPORTED, **codex_facts(found)},
    )
    wizard.save(login, "ChatGPT login saved to {}")
    return True


def _validate(wizard: Wizard, found: CodexLogin) -> None:
    from moat.vault.validate import Outcome, check_declared

    wizard.console.print("Validating login...")
    check = Check(LOGIN_HOSTS[0], _USAGE, headers={"ChatGPT-Account-Id": found.account}, rejected=(401,))
    request = check_declared(PROVIDER, check, Grant("openai"), found.token, wizard.upstream)
    if wizard.check(request).outcome is Outcome.VALID:
        wizard.console.print(f"Authenticated as {found.login}." if found.login else "The login is valid.")
