"""`network.budget:` of agent.yaml: how much of the network a run may use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from moat.config.check import Checker, Node, kind_of
from moat.dataclass import dataclass
from moat.regex import regex
from moat.rules import parse_entry_host

_SIZE = regex(r"([1-9][0-9]{0,11})(?: ?([kKMGT])(i?)B)?")
_POWERS = {"k": 1, "K": 1, "M": 2, "G": 3, "T": 4}
_MOST_REQUESTS = 10**9
_MOST_PER_MINUTE = 100_000  # each is remembered for a minute


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetConfig:
    """Bounds of one run for `host`, or for all hosts together. None: no bound."""

    host: str | None = None  # as in `network.rules`; all hosts that it matches share the budget
    requests: int | None = None
    requests_per_minute: int | None = None
    bytes_per_minute: int | None = None  # of upload and download together
    upload: int | None = None  # bytes of request heads and bodies
    download: int | None = None  # bytes of response heads and bodies
    response: int | None = None  # bytes of a single response's body

    def __str__(self) -> str:
        bounds = {f.name: getattr(self, f.name) for f in fields(self)[1:]}
        told = " ".join(f"{name}={bound}" for name, bound in bounds.items() if bound is not None)
        return f"{self.host or 'all hosts'}: {told}"


def read(check: Checker, node: Node) -> tuple[BudgetConfig, ...]:
    """The section: the budget of the whole run, then those of `hosts`."""
    found = _read(check, node, "network.budget", {"hosts": lambda value: _hosts(check, value)})
    if node.id == "mapping" and not node.value:
        check.wrong(node, "network.budget says nothing")
    hosts: tuple[BudgetConfig, ...] = found.pop("hosts", ())
    return (BudgetConfig(**found), *hosts) if found else hosts


def _hosts(check: Checker, node: Node) -> tuple[BudgetConfig, ...]:
    found: dict[str, BudgetConfig] = {}
    for text, place, value in check.pairs(node, "network.budget.hosts"):
        try:
            host = str(parse_entry_host(text))
        except ValueError as error:
            check.wrong(place, str(error))
            continue
        if host in found:
            check.wrong(place, f"{host} is listed twice; put its budget in one place")
        bounds = _read(check, value, f"the budget of {text}", {})
        if value.id == "mapping" and not value.value:
            check.wrong(value, f"the budget of {text} says nothing")
        found[host] = BudgetConfig(host=host, **bounds)
    return tuple(found.values())


def _read(check: Checker, node: Node, what: str, more: dict[str, Callable[[Node], object]]) -> dict[str, Any]:
    def number(name: str, most: int) -> Callable[[Node], object]:
        return lambda value: check.integer(value, f"{what}: {name}", 1, most)

    def size(name: str) -> Callable[[Node], object]:
        return lambda value: _size(check, value, f"{what}: {name}")

    known = {
        "requests": number("requests", _MOST_REQUESTS),
        "requests_per_minute": number("requests_per_minute", _MOST_PER_MINUTE),
        **{name: size(name) for name in ("bytes_per_minute", "upload", "download", "response")},
        **more,
    }
    return check.fields(node, what, known, {})


def _size(check: Checker, node: Node, what: str) -> int | None:
    """`500MB` is 500,000,000 bytes, `500MiB` 524,288,000; a plain number is bytes."""
    text = str(node.value) if node.id == "scalar" and kind_of(node) in {"str", "int"} else ""
    match = _SIZE.fullmatch(text)
    if match is None:
        check.wrong(node, f"{what} must be an amount of bytes, e.g. 500MB, 2GB or 64KiB")
        return None
    unit: int = (1024 if match[3] else 1000) ** _POWERS.get(match[2] or "", 0)
    return int(match[1]) * unit
