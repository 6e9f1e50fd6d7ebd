"""What a run may reach: hosts, methods, paths. Pure decisions over frozen values; nothing is looked up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from moat.proxy.events import Denial

HOST_NAME = "moat-host"  # synthetic name of the machine that Moat runs on


@dataclass(frozen=True, slots=True)
class HostPattern:
    """`h` or `*.h` (any depth, not the apex), optional `:port`; without port: 80 and 443."""

    host: str  # canonical, without `*.`
    wildcard: bool
    port: int | None

    def matches(self, host: str, port: int) -> bool:
        raise NotImplementedError

    def __str__(self) -> str:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class PathRule:
    """`allow|deny METHOD /path`: `*` is one segment, `**` zero or more; method `*` is any."""

    action: Literal["allow", "deny"]
    method: str
    path: str

    def __str__(self) -> str:
        return f"{self.action} {self.method} {self.path}"


@dataclass(frozen=True, slots=True)
class HostRule:
    """A host entry of `network.rules`. No path rules: everything on that host is allowed."""

    pattern: HostPattern
    rules: tuple[PathRule, ...] = ()


def parse_host_pattern(text: str) -> HostPattern:
    """Raises ValueError with a text that names the mistake; nothing is silently widened."""
    raise NotImplementedError


def parse_rule(text: str) -> PathRule:
    """Raises ValueError with a text that names the mistake."""
    raise NotImplementedError


def parse_host_rule(host: str, rules: Iterable[str] = ()) -> HostRule:
    """A host entry from its texts, as they stand in agent.yaml. Raises ValueError."""
    raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Policy:
    """The network policy of one run. A request passes only when every question answers None."""

    mode: Literal["permissive", "strict"] = "permissive"
    hosts: tuple[HostRule, ...] = ()
    host_ports: frozenset[int] = frozenset()  # ports of `moat-host` that `network.host` opens

    def authority(self, host: str, port: int) -> Denial | None:
        """At CONNECT, before any name is resolved. `host` is canonical (`Authority.host`)."""
        raise NotImplementedError

    def exchange(
        self,
        host: str,
        port: int,
        scheme: str,
        method: str,
        target: str,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> Denial | None:
        """For each request. `target` is origin-form, query included (it is stripped here).

        `headers` lets method- and URL-overriding fields be judged where path rules apply.
        """
        raise NotImplementedError
