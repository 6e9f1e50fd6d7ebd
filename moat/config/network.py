"""`network:` of agent.yaml: what a run may reach. `moat.rules` has the grammar of hosts and rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from moat.config import budget
from moat.config.budget import BudgetConfig
from moat.config.check import Checker, Node
from moat.dataclass import dataclass
from moat.errors import UsageError
from moat.rules import parse_entry_host, parse_host_pattern, parse_host_rule, parse_rule

_REFUSED = {
    "allow": "write network.rules instead, e.g. rules: [api.example.com]",
    "keep_policy": "no other engine is asked: see network.rules, network.budget, and `tools` of MCP servers",
}


ASK_AND_WARN = "policy ask and mode warn exclude each other: what is let through need not be asked about"


@dataclass(frozen=True, slots=True)
class HostRules:
    """One entry of `network.rules`. No `rules`: everything on that host is allowed."""

    host: str  # canonical: `api.example.com`, `*.example.com`, with `:port` when one was written
    rules: tuple[str, ...] = ()  # `allow GET /repos/**`, in the order of the file


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """What a run may reach: `network` of agent.yaml, whose keys these are (docs/network.md)."""

    policy: Literal["permissive", "strict", "ask"] = "permissive"  # ask: what no rule decides, the user does
    rules: tuple[HostRules, ...] = ()
    host: tuple[int, ...] = ()  # ports of the host that the sandbox may reach as `moat-host:<port>`
    mode: Literal["enforce", "warn"] = "enforce"  # warn: what policy and rules refuse is only recorded
    # Responses to requests with a credential that cannot be searched for it.
    unreadable: Literal["withhold", "pass"] = "withhold"
    # Placeholders in bodies to hosts that no grant of the run is for.
    body_leaks: Literal["refuse", "pass"] = "refuse"
    budgets: tuple[BudgetConfig, ...] = ()  # all that match a host apply to it; never softened by `mode`


def parse_host(text: str) -> str:
    """A host pattern, canonical: `h`, `*.h`, each with `:port` or without. Raises UsageError."""
    try:
        return str(parse_host_pattern(text))
    except ValueError as error:
        raise UsageError(str(error)) from None


def _whole_host(text: str) -> str:
    return str(parse_host_rule(text).pattern)


def read(check: Checker, node: Node) -> NetworkConfig:
    """The section; what is wrong with it is noted in `check`."""
    found: dict[str, Any] = check.fields(
        node,
        "network",
        {
            "policy": lambda value: check.choice(value, "network.policy", ("permissive", "strict", "ask")),
            "mode": lambda value: check.choice(value, "network.mode", ("enforce", "warn")),
            "rules": lambda value: _rules(check, value),
            "host": lambda value: _host_ports(check, value),
            "unreadable": lambda value: check.choice(value, "network.unreadable", ("withhold", "pass")),
            "body_leaks": lambda value: check.choice(value, "network.body_leaks", ("refuse", "pass")),
            "budget": lambda value: budget.read(check, value),
        },
        _REFUSED,
    )
    if "budget" in found:
        found["budgets"] = found.pop("budget")
    if found.get("policy") == "ask" and found.get("mode") == "warn":
        check.wrong(node, ASK_AND_WARN)
        del found["mode"]
    return NetworkConfig(**found)


def _host_ports(check: Checker, node: Node) -> tuple[int, ...]:
    found: dict[int, None] = {}
    for item in check.items(node, "network.host", "[5432]"):
        port = check.integer(item, "a port in network.host", 1, 65535)
        if port is not None:
            found[port] = None
    return tuple(found)


def _rules(check: Checker, node: Node) -> tuple[HostRules, ...]:
    found: dict[str, HostRules] = {}
    for item in check.items(node, "network.rules", "[api.example.com]"):
        for entry, place in _entries(check, item):
            if entry.host in found:
                check.wrong(place, f"{entry.host} is listed twice; put its rules in one place")
            found[entry.host] = entry
    return tuple(found.values())


def _entries(check: Checker, item: Node) -> list[tuple[HostRules, Node]]:
    """`host`, or `{host: [rules]}`."""
    if item.id != "mapping":
        host = _parsed(check, item, "an entry of network.rules", _whole_host)
        return [] if host is None else [(HostRules(host), item)]
    found = []
    for text, place, rules in check.pairs(item, "an entry of network.rules"):
        try:
            host = str(parse_entry_host(text))
        except ValueError as error:
            check.wrong(place, str(error))
        else:
            found.append((HostRules(host, _paths(check, rules, text)), place))
    return found


def _paths(check: Checker, node: Node, host: str) -> tuple[str, ...]:
    found = [
        _parsed(check, item, "a rule", lambda text: str(parse_rule(text)))
        for item in check.items(node, f"the rules of {host}", '["allow GET /repos/**"]')
    ]
    if node.id == "sequence" and not found:
        # An empty list would mean "everything" to a reader of the code and "nothing" to one of the file.
        check.wrong(node, f"no rules for {host}; write the host alone to allow all of it")
    return tuple(rule for rule in found if rule is not None)


def _parsed(check: Checker, node: Node, what: str, parse: Callable[[str], str]) -> str | None:
    text = check.text(node, what)
    if text is None:
        return None
    try:
        return parse(text)
    except (ValueError, UsageError) as error:
        check.wrong(node, str(error))
        return None
