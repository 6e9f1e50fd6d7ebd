"""What a run may reach: hosts, methods, paths. Pure decisions over frozen values; nothing is looked up.

A path rule judges every way in which some server might read a path (`paths`): a request passes only when
all of them are allowed, so no encoding gets around a deny.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from moat.proxy.address import AuthorityError, literal, split_host_port
from moat.proxy.events import Denial
from moat.proxy.paths import AmbiguousPathError, PathPattern, readings

HOST_NAME = "moat-host"  # synthetic name of the machine that Moat runs on

_WEB_PORTS = (80, 443)
_MAX_METHOD = 32
# Servers that honour these act on another method or path than the request line says.
_METHOD_OVERRIDES = frozenset({b"x-http-method-override", b"x-http-method", b"x-method-override"})
_PATH_OVERRIDES = frozenset({b"x-original-url", b"x-rewrite-url"})
_BY_DESIGN = (
    "this is a decision of the person who started the run, not a fault to work around: "
    "do not try other hosts, encodings or tools; "
)


@dataclass(frozen=True, slots=True)
class HostPattern:
    """`h` or `*.h` (any depth, not the apex), optional `:port`; without port: 80 and 443."""

    host: str  # canonical, without `*.`
    wildcard: bool
    port: int | None

    def matches(self, host: str, port: int) -> bool:
        """Whether an authority in canonical form is meant."""
        return self.names(host) and (port in _WEB_PORTS if self.port is None else port == self.port)

    def names(self, host: str) -> bool:
        """Whether the host is meant, on whatever port."""
        return host.endswith("." + self.host) if self.wildcard else host == self.host

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        return f"{'*.' if self.wildcard else ''}{host}{port}"


@dataclass(frozen=True, slots=True)
class PathRule:
    """`allow|deny METHOD /path`: `*` is one segment, `**` zero or more; method `*` is any.

    An allow matches a path as it is written. A deny also matches in other letter case, since many servers
    do not tell `/Admin` from `/admin`.
    """

    action: Literal["allow", "deny"]
    method: str
    path: PathPattern

    def matches(self, method: str, path: str) -> bool:
        """Whether one reading of a request (see `paths.readings`) is meant."""
        deny = self.action == "deny"
        same = self.method in {"*", method} or (deny and self.method == method.upper())
        return same and self.path.matches(path, fold_case=deny)

    def __str__(self) -> str:
        return f"{self.action} {self.method} {self.path}"


@dataclass(frozen=True, slots=True)
class HostRule:
    """A host entry of `network.rules`. No path rules: everything on that host is allowed."""

    pattern: HostPattern
    rules: tuple[PathRule, ...] = ()


def parse_host_pattern(text: str) -> HostPattern:
    """Raises ValueError with a text that names the mistake; nothing is silently widened."""
    wildcard = text.startswith("*.")
    rest = text.removeprefix("*.")
    if text == "*":
        raise ValueError("'*' is no host pattern: to allow every host, set network.policy to permissive")
    if "*" in rest:
        raise ValueError(f"{text!r}: '*' is possible only as a leading '*.'")
    if "://" in rest or "/" in rest:
        raise ValueError(f"{text!r}: only a host and a port, without scheme or path")
    try:
        host, port = split_host_port(rest)
    except AuthorityError as error:
        raise ValueError(str(error)) from None
    if wildcard and literal(host):
        raise ValueError(f"{text!r}: an address has no subdomains")
    return HostPattern(host, wildcard, port)


def parse_rule(text: str) -> PathRule:
    """Raises ValueError with a text that names the mistake."""
    parts = text.split()
    if len(parts) != 3:
        raise ValueError(f"{text!r} is not `allow METHOD /path` or `deny METHOD /path`")
    action, method, path = parts
    if action not in {"allow", "deny"}:
        raise ValueError(f"{text!r}: begin with allow or deny, not {action!r}")
    if method != "*" and not (method.isascii() and method.isupper() and method.replace("-", "").isalpha()):
        raise ValueError(f"{text!r}: {method!r} is no method (write it in capitals, or '*' for any)")
    return PathRule("allow" if action == "allow" else "deny", method, PathPattern.parse(path))


def parse_host_rule(host: str, rules: Iterable[str] = ()) -> HostRule:
    """A host entry from its texts, as they stand in agent.yaml. Raises ValueError."""
    return HostRule(parse_host_pattern(host), tuple(parse_rule(rule) for rule in rules))


@dataclass(frozen=True, slots=True)
class Policy:
    """The network policy of one run. A request passes only when every question answers None.

    Several entries may match one host. Their path rules are asked in the order written, and the first match
    wins. An entry without rules opens the host only when no other matching entry has rules: the entries
    that grants add never undo what the user wrote. Without a match the mode decides.
    """

    mode: Literal["permissive", "strict"] = "permissive"
    hosts: tuple[HostRule, ...] = ()
    host_ports: frozenset[int] = frozenset()  # ports of `moat-host` that `network.host` opens

    def authority(self, host: str, port: int) -> Denial | None:
        """At CONNECT, before any name is resolved. `host` is canonical (`Authority.host`)."""
        if host == HOST_NAME:
            return None if port in self.host_ports else _host_port_denial(port)
        if self.mode == "permissive" or self._entries(host, port):
            return None
        return _host_denial(_exactly(host, port))

    def exchange(
        self,
        host: str,
        port: int,
        scheme: str,
        method: str,
        target: str,
        *,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> Denial | None:
        """For each request. `target` is origin-form, query included (it is stripped here).

        `headers` lets method- and URL-overriding fields be judged where path rules apply.
        """
        denial = self.authority(host, port)
        entries = self._entries(host, port)
        rules = [(entry, rule) for entry in entries for rule in entry.rules]
        if denial or not rules:
            return denial
        what = f"{method} {scheme}://{_exactly(host, port)}{target.partition('?')[0][:200]}"
        methods = [method]
        for name, value in headers:
            lower = name.lower()
            if lower in _PATH_OVERRIDES:
                return _ambiguous_denial(what, f"the header {name.decode('latin-1')} names another path")
            if lower in _METHOD_OVERRIDES:
                methods.append(value.decode("latin-1").strip().upper())
        try:
            paths = readings(target)
        except AmbiguousPathError as error:
            return _ambiguous_denial(what, str(error))
        for path in paths:
            for each in methods:
                if rule := self._denied_by(rules, each, path):
                    return _rule_denial(what, rule)
        return None

    def _entries(self, host: str, port: int) -> list[HostRule]:
        """Entries for an authority. Where everything is open, a rule without port restricts every port."""
        any_port = self.mode == "permissive"
        return [
            entry
            for entry in self.hosts
            if entry.pattern.matches(host, port)
            or (any_port and entry.pattern.port is None and entry.pattern.names(host))
        ]

    def _denied_by(self, rules: list[tuple[HostRule, PathRule]], method: str, path: str) -> str:
        """The rule or default that denies one reading of a request, "" when it is allowed."""
        for entry, rule in rules:
            if rule.matches(method, path):
                return f"{entry.pattern}: {rule}" if rule.action == "deny" else ""
        return "network.policy: strict (no rule of this host matches)" if self.mode == "strict" else ""


def _exactly(host: str, port: int) -> HostPattern:
    """The narrowest pattern for an authority: how it is named to the user."""
    return HostPattern(host, wildcard=False, port=None if port in _WEB_PORTS else port)


def _host_denial(pattern: HostPattern) -> Denial:
    return Denial(
        code="policy",
        reason=f"{pattern} is not among the hosts that this run may reach",
        rule="network.policy: strict",
        hint=f"{_BY_DESIGN}to allow it, the user adds `- {pattern}` to network.rules in agent.yaml "
        "and starts a new run",
    )


def _host_port_denial(port: int) -> Denial:
    return Denial(
        code="policy",
        reason=f"port {port} of the user's own machine ({HOST_NAME}) is not open to this run",
        rule="network.host",
        hint=f"{_BY_DESIGN}to allow it, the user adds {port} to network.host in agent.yaml "
        "and starts a new run",
    )


def ssh_denial(host: str, port: int) -> Denial:
    """SSH passes to granted hosts alone: policy cannot see into it, and no rule for web pages means it."""
    where = host if port == 22 else f"{host} port {port}"
    return Denial(
        code="policy",
        reason=f"this run has no SSH grant for {where}",
        rule="ssh grants",
        hint=f"{_BY_DESIGN}to allow it, the user runs `moat grant ssh --host {host}` and starts a new run "
        f"with `--grant ssh:{host}`",
    )


def _rule_denial(what: str, rule: str) -> Denial:
    return Denial(
        code="policy",
        reason=f"{what} is not allowed by this run's network policy",
        rule=rule,
        hint=f"{_BY_DESIGN}to allow it, the user changes the rules of this host under network.rules "
        "in agent.yaml and starts a new run",
    )


def _ambiguous_denial(what: str, why: str) -> Denial:
    return Denial(
        code="policy",
        reason=f"{what} can be read in more than one way ({why}), and this host has path rules",
        rule="ambiguous requests are refused where path rules apply",
        hint="send the path plainly, without encoded slashes, dots, percent signs or overriding headers",
    )
