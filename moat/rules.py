"""The grammar of network rules: one for agent.yaml, the command line, the Python API and the proxy.

    entry    = host [ ":" port ]  with any number of rules
    host     = name | "*." name | IPv4 | "[" IPv6 "]" | "*"
    port     = 1…65535 | "*"
    rule     = action method path
    action   = "allow" | "deny" | "warn"
    method   = a name in capitals | "*"
    path     = "/" segments, each a text without percent signs | "*" | "**"

Host. `*.name` is every name below `name` at any depth, not `name` itself; `*` is every host and stands only
in entries with rules or a budget. Case and a trailing dot make no difference; other spellings of a host
(`127.1`, `0x7f000001`, Unicode) are mistakes, in a rule as in a request (`moat.authority`).
Port. None means 80 and 443, `*` means every one. Where everything is open anyway (`policy: permissive`) an
entry without a port restricts its host on every port.
Method. `*` is any. A deny or warn holds for every spelling of its method's case, an allow for its own.
Path. `*` is one whole segment, `**` zero or more; a trailing slash makes no difference; a query is no part of
it. An allow matches the case as written, a deny or warn any. All ways in which servers may read a request's
path are asked about (`moat.proxy.paths`), and all have to be allowed.

Which rule decides: the rules of all entries that match a host are asked in the order written, and the first
that matches decides. When none does, `permissive` allows and `strict` refuses. An entry without rules opens
its host; it never lifts the rules of another entry, so the hosts that grants add undo nothing.
A `warn` decides nothing: what it matches is recorded as a warning, and the next rule is asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from moat.authority import AuthorityError, literal, split_host_port
from moat.dataclass import dataclass
from moat.regex import regex

Action = Literal["allow", "deny", "warn"]

_WEB_PORTS = (80, 443)
_ANY_HOST = regex(r"\*(?::[0-9]+)?")
_METHOD = regex(r"\*|[A-Z](?:[A-Z-]{0,30}[A-Z])?")
_SEGMENT = regex(r"[A-Za-z0-9._~!$&'()+,=:@-]+")
_ACTIONS: dict[str, Action] = {"allow": "allow", "deny": "deny", "warn": "warn"}


@dataclass(frozen=True, slots=True)
class HostPattern:
    """Hosts and ports that an entry is about."""

    host: str  # canonical, without `*.`; "" is every host
    wildcard: bool = False
    port: int | None = None  # None: 80 and 443; 0: every port

    def matches(self, host: str, port: int) -> bool:
        """Whether an authority in canonical form is meant."""
        if self.port is None:
            return port in _WEB_PORTS and self.names(host)
        return self.port in {0, port} and self.names(host)

    def names(self, host: str) -> bool:
        """Whether the host is meant, on whatever port."""
        if self.wildcard:
            return not self.host or host.endswith("." + self.host)
        return host == self.host

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port or '*'}"
        if self.wildcard:
            return f"*.{host}{port}" if host else f"*{port}"
        return f"{host}{port}"


@dataclass(frozen=True, slots=True)
class PathPattern:
    """A path in which `*` stands for one segment and `**` for zero or more."""

    segments: tuple[str, ...]

    def matches(self, path: str, *, fold_case: bool = False) -> bool:
        """Whether a reading of a path matches; a trailing slash makes no difference.

        Linear in path times pattern: the set of pattern positions reached is carried along.
        """
        if fold_case:
            path = path.casefold()
        parts = path[1:].removesuffix("/").split("/") if path != "/" else []
        pattern = tuple(part.casefold() for part in self.segments) if fold_case else self.segments
        reached = _skip_any({0}, pattern)
        for part in parts:
            step = {at if pattern[at] == "**" else at + 1 for at in reached if _takes(pattern, at, part)}
            reached = _skip_any(step, pattern)
        return len(pattern) in reached

    def __str__(self) -> str:
        return "/" + "/".join(self.segments)


def _takes(pattern: tuple[str, ...], at: int, part: str) -> bool:
    return at < len(pattern) and (pattern[at] in {"*", "**"} or pattern[at] == part)


def _skip_any(reached: set[int], pattern: tuple[str, ...]) -> set[int]:
    """Add the positions behind each `**`, which may stand for nothing."""
    result = set(reached)
    for at in sorted(reached):
        while at < len(pattern) and pattern[at] == "**":
            at += 1  # noqa: PLW2901 - walks on from each position
            result.add(at)
    return result


@dataclass(frozen=True, slots=True)
class PathRule:
    """One rule: what happens to requests with this method and path."""

    action: Action
    method: str
    path: PathPattern

    def matches(self, method: str, path: str) -> bool:
        """Whether one reading of a request (see `moat.proxy.paths.readings`) is meant."""
        exact = self.action == "allow"
        same = self.method in {"*", method} or (not exact and self.method == method.upper())
        return same and self.path.matches(path, fold_case=not exact)

    def __str__(self) -> str:
        return f"{self.action} {self.method} {self.path}"


@dataclass(frozen=True, slots=True)
class HostRule:
    """An entry. No path rules: everything on that host is allowed."""

    pattern: HostPattern
    rules: tuple[PathRule, ...] = ()


def parse_host_pattern(text: str) -> HostPattern:
    """A host without `*` in place of all of it, or of the port: what a credential may be bound to.

    Raises ValueError with a text that names the mistake; nothing is silently widened.
    """
    wildcard = text.startswith("*.")
    rest = text.removeprefix("*.")
    if "*" in rest:
        raise ValueError(f"{text!r}: '*' is possible only as a leading '*.'")
    if "://" in rest or "/" in rest:
        raise ValueError(f"{text!r}: only a host and a port, without scheme or path")
    try:
        host, port = split_host_port(rest)
    except AuthorityError as error:
        raise ValueError(f"{error}; a host is e.g. api.example.com, *.example.com or host:8443") from None
    if wildcard and literal(host):
        raise ValueError(f"{text!r}: an address has no subdomains")
    return HostPattern(host, wildcard, port)


def parse_entry_host(text: str) -> HostPattern:
    """The host of an entry: as `parse_host_pattern`, and `*` for every host or port. Raises ValueError."""
    host, any_port = (text[:-2], True) if text.endswith(":*") else (text, False)
    if host == "*" or (not any_port and _ANY_HOST.fullmatch(host)):
        named = parse_host_pattern("any" + host[1:])
        found = HostPattern("", wildcard=True, port=named.port)
    else:
        found = parse_host_pattern(host)
    if any_port and found.port is not None:
        raise ValueError(f"{text!r} has two ports")
    return replace(found, port=0) if any_port else found


def parse_rule(text: str) -> PathRule:
    """Raises ValueError with a text that names the mistake."""
    parts = text.split()
    if len(parts) != 3:
        raise ValueError(f"{text!r} is not a rule, e.g. `allow GET /repos/**` or `deny * /admin/**`")
    word, method, path = parts
    if word not in _ACTIONS:
        raise ValueError(f"{text!r}: a rule begins with {', '.join(_ACTIONS)}, not {word!r}")
    if not _METHOD.fullmatch(method):
        raise ValueError(f"{text!r}: {method!r} is no method (write it in capitals, or '*' for any)")
    return PathRule(_ACTIONS[word], method, parse_path(path))


def parse_path(text: str) -> PathPattern:
    """Raises ValueError for what could never match, or would match something else than it seems to."""
    if not text.startswith("/"):
        raise ValueError(f"path pattern {text!r} does not begin with '/'")
    segments = tuple(text[1:].removesuffix("/").split("/")) if text != "/" else ()
    for segment in segments:
        if segment in {"", ".", ".."}:
            raise ValueError(f"path pattern {text!r} has an empty or dot segment")
        if segment not in {"*", "**"} and not _SEGMENT.fullmatch(segment):
            raise ValueError(
                f"path pattern {text!r}: {segment!r} is not possible ('*' and '**' stand for whole segments; "
                "queries and percent-encoding cannot be matched)"
            )
    return PathPattern(segments)


def parse_host_rule(host: str, rules: Iterable[str] = ()) -> HostRule:
    """An entry from its texts, as they stand in agent.yaml. Raises ValueError."""
    entry = HostRule(parse_entry_host(host), tuple(parse_rule(rule) for rule in rules))
    if not entry.pattern.host and not entry.rules:
        raise ValueError(f"{host!r} without rules: to allow every host, set network.policy to permissive")
    return entry
