"""An imported login of Claude Code, kept alive by the Claude Code that it was imported from.

Moat does not renew it: the server would give a new refresh token, and the user's own Claude Code would be
logged out. It renews its login itself; what it has then is read again here.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from moat.errors import GrantError, MoatError
from moat.grants import Credential, CredentialInfo
from moat.paths import locked
from moat.vault.local_login import ClaudeLogin, claude_login
from moat.vault.providers.anthropic import OAUTH_PREFIX
from moat.vault.store import Vault

NAME = "anthropic"
Notice = Callable[[str, str], None]  # as in `login.renewed` of the journal: (outcome, grant)


class Renewing(Protocol):
    """A CredentialSource that may get another credential when one was not taken."""

    async def credential(self, name: str) -> Credential: ...
    def rejected(self, name: str) -> bool: ...


class ImportedLogins:
    """A CredentialSource in front of another one, which has all but imported logins."""

    def __init__(self, vault: Vault, rest: Renewing, notice: Notice) -> None:
        self._vault = vault
        self._rest = rest
        self._notice = notice
        self._rejected = False

    async def credential(self, name: str) -> Credential:
        """As the other source's. Raises GrantError, VaultError."""
        if name != NAME:
            return await self._rest.credential(name)
        if self._rejected:
            self._rejected = False
            await self._look_again()
        try:
            return await self._rest.credential(name)
        except GrantError:
            await self._look_again()
            return await self._rest.credential(name)

    def rejected(self, name: str) -> bool:
        """Its host did not take the credential. Whether there may be another one."""
        if name != NAME:
            return self._rest.rejected(name)
        self._rejected = is_imported(self._vault)
        return False  # nobody knows whether Claude Code on the host has a better one

    async def _look_again(self) -> None:
        from anyio import to_thread

        if await to_thread.run_sync(take_over, self._vault):
            self._notice("renewed", NAME)


def is_imported(vault: Vault) -> bool:
    try:
        return vault.info(NAME).metadata.get("source") == "import"
    except MoatError:
        return False


def kept_alive(vault: Vault, info: CredentialInfo) -> CredentialInfo:
    """What is known of a credential, after a look for a newer login when this one has ended."""
    if info.name == NAME and info.expired(dt.datetime.now(dt.UTC)) and take_over(vault):
        return vault.info(NAME)
    return info


def take_over(vault: Vault) -> bool:
    """Store what Claude Code on this machine has by now, if the login was imported. Whether it is a new one.

    One process at a time; whatever goes wrong leaves what there was.
    """
    if not is_imported(vault):
        return False
    try:
        with locked(vault.directory / ".import"):
            login = claude_login(dt.datetime.now(dt.UTC))
            known = vault.get(NAME)
            if login.token == known.secret or not login.token.reveal().startswith(OAUTH_PREFIX):
                return False
            vault.put(_taken(known, login))
            return True
    except (MoatError, OSError):
        return False


def _taken(known: Credential, login: ClaudeLogin) -> Credential:
    facts = {
        "subscription": login.subscription,
        "scopes": " ".join(login.scopes),
        "rate_limit_tier": login.rate_limit_tier,
    }
    info = replace(
        known.info,
        created_at=dt.datetime.now(dt.UTC),
        expires_at=login.expires_at,
        metadata={**known.info.metadata, **{key: value for key, value in facts.items() if value}},
    )
    return Credential(info, login.token)
