"""The credentials of one run: the vault's, with those kept alive that can be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from moat.config import UpstreamConfig
from moat.errors import GrantError, MoatError
from moat.grants import Credential, LoginRule, Secret, grant_of
from moat.journal import Journal
from moat.proxy.logins import LoginTable
from moat.runtime.rejected import fix
from moat.vault import Vault
from moat.vault.aws.source import RoleKeys
from moat.vault.dynamic import DynamicCredentials
from moat.vault.imported import ImportedLogins
from moat.vault.oauth.source import RunCredentials
from moat.vault.registry.source import RegistryTokens

_LOST = {"lost", "interrupted"}


class Credentials:
    """A CredentialSource that remembers what was not taken. To be made in the run's event loop."""

    def __init__(
        self,
        vault: Vault,
        upstream: UpstreamConfig,
        journal: Journal,
        tell: Callable[[str], None],
        run: str,
    ) -> None:
        self._vault = vault
        self._journal = journal
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._logins = RunCredentials(vault, upstream, vault.directory, self._noted)
        self._kept = DynamicCredentials(
            vault, ImportedLogins(vault, self._logins, self._noted), self._resolved
        )
        self._roles = RoleKeys(vault, upstream, f"moat-{run}", self._kept, self._resolved)
        self._source = RegistryTokens(upstream, self._roles)
        self._given: dict[str, Secret] = {}
        self._refused: dict[str, Secret] = {}
        self._told: set[str] = set()  # grants that the user knows to be of no use now
        self._lost: dict[str, Secret | None] = {}  # of these, logins that are used to the end of this token

    async def prepare(self, names: Iterable[str]) -> None:
        """Get what is kept elsewhere, before anything is made. Raises GrantError."""
        names = tuple(names)
        await self._kept.prepare(names)
        await self._roles.prepare(names)

    async def credential(self, name: str) -> Credential:
        """Raises GrantError, VaultError."""
        grant = grant_of(name)
        try:
            found = await self._source.credential(name)
        except MoatError as error:
            self._failed(grant, f"requests with the credential {grant} fail: {error}")
            self._lost.pop(grant, None)  # it has no token any more: the next one is of another login
            raise
        if grant in self._lost and self._lost[grant] in {None, found.secret}:
            self._lost[grant] = found.secret
        else:
            self._told.discard(grant)
            self._lost.pop(grant, None)
        self._given[grant] = found.secret
        return found

    def _failed(self, grant: str, text: str) -> None:
        """Tell the user, once; every request that fails tells the agent."""
        if grant not in self._told:
            self._told.add(grant)
            self._tell(f"warning: {text}: `{fix(self._vault, grant)}`")

    def rejected(self, name: str) -> bool:
        """Its host did not take the credential that was given out last. Whether the next may be another."""
        if name in self._given:
            self._refused[name] = self._given[name]
        return self._source.rejected(name)

    async def renew(self, name: str) -> None:
        """Raises GrantError when the credential is one that its host has refused, or there is none."""
        found = await self.credential(name)
        if found.secret == self._refused.get(name):
            raise GrantError(
                f"the credential {name} is not accepted any more",
                hint=f"the user runs `{fix(self._vault, name)}` on the host",
            )

    def login_table(self, rules: tuple[LoginRule, ...]) -> LoginTable:
        """What answers tools of the sandbox at the endpoints of `rules`."""
        return LoginTable(rules, self.renew, self.answered)

    def answered(self, rule: LoginRule, outcome: str) -> None:
        """A tool in the sandbox wanted a login renewed, or a fresh one."""
        self._journal.often("login.answered", grant=rule.credential, host=rule.hosts[0], outcome=outcome)

    async def aclose(self) -> None:
        await self._logins.aclose()

    def _resolved(self, grant: str, source: str, error: str) -> None:
        self._journal.record("source.asked", grant=grant, source=source, error=error)

    def _noted(self, outcome: str, grant: str) -> None:  # in a thread, or not
        self._journal.record("login.renewed", grant=grant, outcome=outcome)
        if outcome in _LOST:
            self._loop.call_soon_threadsafe(self._lose, grant)

    def _lose(self, grant: str) -> None:
        self._lost[grant] = None  # the next that is had is the one it still has
        self._failed(grant, f"the login {grant} is not accepted any more")
