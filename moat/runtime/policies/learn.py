"""The smallest list of allowed hosts that would have let a run do what it did.

"Smallest" is meant exactly: hosts by name, one port where one was used, and with rules the very methods and
paths; only many paths of one shape become one pattern. What was refused in the run is no part of it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from moat.config import HostRules, NetworkConfig
from moat.dataclass import dataclass
from moat.proxy.policy import HOST_NAME
from moat.rules import HostPattern, parse_host_pattern, parse_path
from moat.runtime.gateway import policy_of
from moat.runtime.policies.recorded import Recorded, Request, judge

_ALIKE = 5  # paths that differ in one segment only: with more, the segment becomes `*`
_WEB = {80, 443}
_PASSED = ("allow", "warn")
_METHOD = re.compile(r"[A-Z]{1,32}")  # those with a hyphen are as rare as those in lower case


@dataclass(frozen=True, slots=True)
class Learned:
    network: NetworkConfig  # policy strict, its rules, ports of this machine
    granted: tuple[str, ...]  # hosts that need no entry: grants open them
    refused: tuple[str, ...]  # URLs that the run was refused; not in the list
    unsayable: tuple[str, ...]  # URLs that no rule can express, and that would be refused


def learn(done: Iterable[Recorded], opened: tuple[str, ...], *, rules: bool) -> Learned:
    """opened: host patterns that grants open. rules: methods and paths too, also for those hosts."""
    done = list(done)
    passed = [item.request for item in done if item.outcome in _PASSED]
    grants = tuple(map(parse_host_pattern, opened))
    ports = tuple(sorted({request.port for request in passed if request.host == HOST_NAME}))
    of_host: dict[str, list[Request]] = defaultdict(list)
    for request in passed:
        if request.host != HOST_NAME:
            of_host[request.host].append(request)
    entries: list[HostRules] = []
    free: list[str] = []
    for host, requests in sorted(of_host.items()):
        used = {request.port for request in requests}
        if not rules and all(any(grant.matches(host, port) for grant in grants) for port in used):
            free.append(host)
            continue
        for pattern, own in _patterns(host, requests):
            said = _rules(own) if rules else ()
            if said or not rules:  # an entry without rules would open the host
                entries.append(HostRules(str(pattern), said))
    network = NetworkConfig(policy="strict", rules=tuple(entries), host=ports)
    policy = policy_of(network, opened)
    return Learned(
        network,
        granted=tuple(free),
        refused=_urls(item.request for item in done if item.outcome not in _PASSED),
        unsayable=_urls(request for request in passed if judge(policy, request).outcome != "allow"),
    )


def _urls(requests: Iterable[Request]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"{request.method} {request.url}" for request in requests))


def _patterns(host: str, requests: Sequence[Request]) -> list[tuple[HostPattern, list[Request]]]:
    """An entry for each port, and one for both ports of the web where both were used."""
    used = {request.port for request in requests}
    if used >= _WEB:
        web = [request for request in requests if request.port in _WEB]
        rest = [(HostPattern(host, port=port), port) for port in sorted(used - _WEB)]
        return [(HostPattern(host), web), *((p, [r for r in requests if r.port == n]) for p, n in rest)]
    return [(HostPattern(host, port=port), [r for r in requests if r.port == port]) for port in sorted(used)]


def _rules(requests: Iterable[Request]) -> tuple[str, ...]:
    paths: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for request in requests:
        if _METHOD.fullmatch(request.method):
            paths[request.method].add(_segments(request.path))
    return tuple(
        f"allow {method} /{'/'.join(path)}"
        for method, found in sorted(paths.items())
        for path in sorted(_folded(found))
    )


def _segments(path: str) -> tuple[str, ...]:
    """A path as a pattern: `*` for each segment that a pattern cannot spell."""
    segments = [segment for segment in path[1:].split("/") if segment]
    return tuple(segment if _spellable(segment) else "*" for segment in segments)


def _spellable(segment: str) -> bool:
    try:
        return parse_path("/" + segment).segments == (segment,) and segment != "**"
    except ValueError:
        return False


def _folded(paths: set[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Many paths that differ in one segment become one, as often as that happens."""
    alike: dict[tuple[int, tuple[str, ...]], set[tuple[str, ...]]] = defaultdict(set)
    for path in paths:
        for at in range(len(path)):
            alike[at, (*path[:at], "*", *path[at + 1 :])].add(path)
    for (_, pattern), members in sorted(alike.items(), key=lambda item: (-len(item[1]), item[0])):
        if len(members - {pattern}) > _ALIKE:
            return _folded((paths - members) | {pattern})
    return paths
