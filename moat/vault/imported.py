"""Imported logins of Claude Code and Codex, kept alive by the tool that they were imported from.

Moat does not renew them: the server would give a new refresh token, and the user's own tool would be logged
out. It renews its login itself; what it has then is read again here.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from moat.dataclass import dataclass
from moat.errors import GrantError, MoatError
from moat.grants import Credential, CredentialInfo, Secret
from moat.paths import locked
from moat.vault.codex_login import CodexLogin, codex_login
from moat.vault.local_login import claude_login
from moat.vault.providers.anthropic import OAUTH_PREFIX
from moat.vault.providers.openai import ACCOUNT, LOGIN, PLAN
from moat.vault.store import Vault

IMPORTED = "import"  # the `source` in the metadata of such a login
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
        self._rejected: set[str] = set()

    async def credential(self, name: str) -> Credential:
        """As the other source's. Raises GrantError, VaultError."""
        if name not in _READERS:
            return await self._rest.credential(name)
        if name in self._rejected:
            self._rejected.discard(name)
            await self._look_again(name)
        try:
            return await self._rest.credential(name)
        except GrantError:
            await self._look_again(name)
            return await self._rest.credential(name)

    def rejected(self, name: str) -> bool:
        """Its host did not take the credential. Whether there may be another one."""
        if name not in _READERS:
            return self._rest.rejected(name)
        if is_imported(self._vault, name):
            self._rejected.add(name)
        return False  # nobody knows whether the tool on the host has a better one

    async def _look_again(self, name: str) -> None:
        from anyio import to_thread

        if await to_thread.run_sync(take_over, self._vault, name):
            self._notice("renewed", name)


def is_imported(vault: Vault, name: str) -> bool:
    try:
        return vault.info(name).metadata.get("source") == IMPORTED
    except MoatError:
        return False


def kept_alive(vault: Vault, info: CredentialInfo) -> CredentialInfo:
    """What is known of a credential, after a look for a newer login when this one has ended."""
    if info.name in _READERS and info.expired(dt.datetime.now(dt.UTC)) and take_over(vault, info.name):
        return vault.info(info.name)
    return info


def take_over(vault: Vault, name: str) -> bool:
    """Store what the tool on this machine has by now, if the login was imported. Whether it is a new one.

    One process at a time; whatever goes wrong leaves what there was.
    """
    if not is_imported(vault, name):
        return False
    try:
        with locked(vault.directory / ".import"):
            _, known = old = vault.current(name)
            login = _READERS[name](known.info)
            if login is None or login.token == known.secret:
                return False
            return vault.renew(old, _taken(known, login))
    except (MoatError, OSError):
        return False


# --- what the tools have ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Login:
    token: Secret
    expires_at: dt.datetime | None
    facts: Mapping[str, str]  # metadata


def codex_facts(login: CodexLogin) -> Mapping[str, str]:
    """What is kept of a login besides its token."""
    return {ACCOUNT: login.account, LOGIN: login.login, PLAN: login.plan}


def _claude(known: CredentialInfo) -> _Login | None:
    del known
    login = claude_login(dt.datetime.now(dt.UTC))
    if not login.token.reveal().startswith(OAUTH_PREFIX):
        return None
    facts = {
        "subscription": login.subscription,
        "scopes": " ".join(login.scopes),
        "rate_limit_tier": login.rate_limit_tier,
    }
    return _Login(login.token, login.expires_at, facts)


def _codex(known: CredentialInfo) -> _Login | None:
    """Of the same account: whoever logs in as somebody else has not granted that."""
    login = codex_login(dt.datetime.now(dt.UTC))
    if login is None or login.account != known.metadata.get(ACCOUNT):
        return None
    return _Login(login.token, login.expires_at, codex_facts(login))


_READERS: Mapping[str, Callable[[CredentialInfo], _Login | None]] = {"anthropic": _claude, "openai": _codex}


def _taken(known: Credential, login: _Login) -> Credential:
    info = replace(
        known.info,
        created_at=dt.datetime.now(dt.UTC),
        expires_at=login.expires_at,
        metadata={**known.info.metadata, **{key: value for key, value in login.facts.items() if value}},
    )
    return Credential(info, login.token)
