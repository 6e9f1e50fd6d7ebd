"""The words of a provider: its row in the table, what a run holds of it, how a credential is checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from types import MappingProxyType
from typing import Literal, Protocol

from moat.dataclass import dataclass
from moat.grants import CredentialInfo, LoginRule, Rule

_EMPTY: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Entry:
    """What a provider says of itself in lists."""

    name: str
    summary: str
    hosts: tuple[str, ...]  # that may get the credential
    opens: tuple[str, ...]  # host patterns that the grant opens under `network.policy: strict`
    aliases: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()  # what its credentials begin with, and no other vendor's do
    scope: str = ""  # what stands behind the colon of its grants (`host`); empty: nothing may
    scope_needed: bool = True
    positional: bool = False  # its scope is an argument of `moat grant`, not an option
    scoped: tuple[str, ...] = ()  # hosts of a grant with a scope, `{host}` for it; empty: the scope's own
    injected: bool = True  # its credentials are put on requests by a `Provider`

    def words(self, scope: str) -> tuple[str, ...]:
        """How `moat grant` is told the scope: `--host github.com`, or the name alone."""
        return (scope,) if self.positional else (f"--{self.scope}", scope)

    def bound(self, scope: str | None) -> tuple[str, ...]:
        """The hosts that the credential of a grant with this scope may go to."""
        return tuple(host.format(host=scope) for host in self.scoped) if scope else self.hosts

    def opened(self, scope: str | None) -> tuple[str, ...]:
        """Host patterns that such a grant opens when the policy is strict."""
        return self.bound(scope) if scope else self.opens


@dataclass(frozen=True, slots=True)
class Held:
    """What a run has of one credential."""

    info: CredentialInfo
    placeholder: str


@dataclass(frozen=True, slots=True)
class Check:
    """The smallest request that tells whether a credential is good; it goes out as the injection says."""

    host: str  # `{host}` is the scope's
    path: str  # `${token}` is the credential
    method: Literal["GET", "POST"] = "GET"
    headers: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    body: Mapping[str, object] | None = None  # sent as JSON
    login: tuple[str, ...] = ()  # keys that lead to the user's name in the JSON of the answer
    rejected: tuple[int, ...] = (401, 403)


class Provider(Protocol):
    """One kind of grant. `token` is random per run ([A-Za-z0-9]), so that a leak tells its run."""

    @property
    def entry(self) -> Entry: ...

    def placeholder(self, info: CredentialInfo, token: str) -> str:
        """The stand-in that the sandbox holds: right shape, obviously not real, with `token` in it."""
        ...

    def rules(self, info: CredentialInfo, placeholder: str) -> tuple[Rule, ...]:
        """No rule names a host that `entry.bound` does not."""
        ...

    def logins(self, info: CredentialInfo, placeholder: str) -> tuple[LoginRule, ...]:
        """Where the vendor's own tools would renew such a credential, or make a fresh one."""
        ...

    def environment(self, held: Sequence[Held]) -> Mapping[str, str]:
        """Variables of the sandbox; placeholders only. `held`: all of this provider, at least one."""
        ...

    def files(self, held: Sequence[Held]) -> tuple[tuple[str, bytes], ...]:
        """Files of the sandbox, 0600: path relative to HOME, content; placeholders only."""
        ...
