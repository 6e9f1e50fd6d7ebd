"""What a run may reach: hosts, methods, paths. Pure decisions over frozen values; nothing is looked up.

`moat.rules` has the grammar and says which rule decides. A rule judges every way in which some server might
read a path (`paths`): a request passes only when all of them are allowed, so no encoding gets around a deny.
What can be worked out for an authority is worked out once for its connection (`SitePolicy`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal
from urllib.parse import parse_qsl

from moat.arguments import check
from moat.dataclass import dataclass
from moat.proxy.events import Denial, Undecided, Warned
from moat.proxy.paths import AmbiguousPathError, readings
from moat.regex import regex
from moat.rules import HostPattern, HostRule, PathRule

HOST_NAME = "moat-host"  # synthetic name of the machine that Moat runs on

Mode = Literal["permissive", "strict", "ask"]

_WEB_PORTS = (80, 443)
_NO_RULE = "no rule"
# Servers that honour these act on another method or path than the request line says.
_METHOD_OVERRIDES = frozenset({b"x-http-method-override", b"x-http-method", b"x-method-override"})
_PATH_OVERRIDES = frozenset({b"x-original-url", b"x-rewrite-url"})
# PHP takes a dot, a space or an open bracket in a name for `_`, skips spaces before it, and ends it at a NUL.
_METHOD_NAME = regex(r" *[_. \[]method(?:\0.*)?", re.IGNORECASE | re.DOTALL)
_BY_DESIGN = (
    "this is a decision of the person who started the run, not a fault to work around: "
    "do not try other hosts, encodings or tools; "
)


@dataclass(frozen=True, slots=True)
class Policy:
    """The network policy of one run. A request passes only when every question answers None.

    The entries of `hosts` that match are asked in order, see `moat.rules`; then the mode decides.
    """

    mode: Mode = "permissive"  # ask: what no rule decides, a decider does
    hosts: tuple[HostRule, ...] = ()
    host_ports: frozenset[int] = frozenset()  # ports of `moat-host` that `network.host` opens
    enforce: bool = True  # False: what `mode` and `hosts` refuse is let through as `Warned`

    def __post_init__(self) -> None:
        """Raises ArgumentError for a mode that is none."""
        check("mode", self.mode, Mode)

    def site(self, host: str, port: int) -> SitePolicy:
        """What the policy says of one authority. `host` is canonical (`Authority.host`)."""
        entries = self._entries(host, port)
        rules = tuple((entry.pattern, rule) for entry in entries for rule in entry.rules)
        if host == HOST_NAME:
            denial = None if port in self.host_ports else _host_port_denial(port)
        elif self.mode == "permissive" or entries:
            denial = None
        else:
            denial = self._without_rule(_host_denial(_exactly(host, port), self.mode))
        return SitePolicy(self, _exactly(host, port), denial, rules)

    def authority(self, host: str, port: int) -> Denial | None:
        """At CONNECT, before any name is resolved."""
        return self.site(host, port).denial

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
        """For one request, see `SitePolicy.exchange`."""
        return self.site(host, port).exchange(scheme, method, target, headers)

    def _entries(self, host: str, port: int) -> list[HostRule]:
        """Entries for an authority. Where everything is open, a rule without port restricts every port."""
        any_port = self.mode == "permissive"
        return [
            entry
            for entry in self.hosts
            if entry.pattern.matches(host, port)
            or (any_port and entry.pattern.port is None and entry.pattern.names(host))
        ]

    def _without_rule(self, denial: Denial) -> Denial:
        """The word on what no rule decides, in another mode than permissive."""
        return undecided(denial) if self.mode == "ask" else self._softened(denial)

    def _softened(self, denial: Denial) -> Denial:
        """A denial as it is enforced: a warning when it is not."""
        return denial if self.enforce else warned(denial)


@dataclass(frozen=True, slots=True)
class SitePolicy:
    """A policy's word on one authority: asked once for a connection, then for each of its requests."""

    policy: Policy
    site: HostPattern
    denial: Denial | None  # of everything that goes there
    rules: tuple[tuple[HostPattern, PathRule], ...]

    @property
    def silent(self) -> bool:
        """Whether `exchange` always answers None."""
        return self.denial is None and not self.rules

    def exchange(
        self, scheme: str, method: str, target: str, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> Denial | None:
        """None, or why this request is refused. A `Warned` lets it pass; an `Undecided` may be asked about.

        `target` is origin-form, query included. `headers` lets fields that override method or URL be judged
        where path rules apply.
        """
        if self.denial is not None or not self.rules:
            return self.denial
        path, _, query = target.partition("?")
        what = f"{method} {scheme}://{self.site}{path[:200]}"
        try:
            methods = [method, *_overriding(headers), *_named_methods(query)]
            paths = readings(target)
        except AmbiguousPathError as error:
            return self.policy._softened(_ambiguous_denial(what, str(error)))
        warning: Denial | None = None
        unknown: Denial | None = None
        for reading in paths:
            for each in methods:
                denied_by, warned_by = self._ask(each, reading)
                if denied_by == _NO_RULE:
                    unknown = self.policy._without_rule(_rule_denial(what, self._no_rule))
                elif denied_by:
                    return self.policy._softened(_rule_denial(what, denied_by))
                if warned_by and warning is None:
                    warning = warned(_rule_denial(what, warned_by))
        return unknown or warning

    @property
    def _no_rule(self) -> str:
        return f"network.policy: {self.policy.mode} (no rule of this host matches)"

    def _ask(self, method: str, path: str) -> tuple[str, str]:
        """The rule that denies one reading of a request (or `_NO_RULE`), and the first that warns of it."""
        warned_by = ""
        for pattern, rule in self.rules:
            if not rule.matches(method, path):
                continue
            if rule.action == "allow":
                return "", warned_by
            text = f"{pattern}: {rule}"
            if rule.action == "deny":
                return text, warned_by
            warned_by = warned_by or text
        return "" if self.policy.mode == "permissive" else _NO_RULE, warned_by


def warned(denial: Denial) -> Warned:
    """The same objection, to be recorded only."""
    return Warned(denial.code, denial.reason, denial.rule, denial.hint)


def undecided(denial: Denial) -> Undecided:
    """The same, where somebody may be asked."""
    return Undecided(denial.code, denial.reason, denial.rule, denial.hint)


def _overriding(headers: Sequence[tuple[bytes, bytes]]) -> list[str]:
    """Methods that header fields put in place of the request's own. Raises AmbiguousPathError for paths."""
    methods = []
    for name, value in headers:
        lower = name.lower().replace(b"_", b"-")  # CGI-style servers read one as the other
        if lower in _PATH_OVERRIDES:
            raise AmbiguousPathError(f"the header {name.decode('latin-1')} names another path")
        if lower in _METHOD_OVERRIDES:
            methods.append(value.decode("latin-1").strip().upper())
    return methods


def _named_methods(query: str) -> list[str]:
    """Methods that a query puts in place of the request's own (Rails, Symfony, Laravel: `_method`)."""
    if "%" not in query and "method" not in query.lower():
        return []
    return [value.strip().upper() for name, value in parse_qsl(query) if _METHOD_NAME.fullmatch(name)]


def _exactly(host: str, port: int) -> HostPattern:
    """The narrowest pattern for an authority: how it is named to the user."""
    return HostPattern(host, wildcard=False, port=None if port in _WEB_PORTS else port)


def _host_denial(pattern: HostPattern, mode: str) -> Denial:
    return Denial(
        code="policy",
        reason=f"{pattern} is not among the hosts that this run may reach",
        rule=f"network.policy: {mode}",
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
