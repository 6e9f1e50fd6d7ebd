"""`ask` of `~/.moat/config.yaml`: what runs with `policy: ask` need not ask about, and how long they wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moat.config.check import Checker, Node
from moat.dataclass import dataclass
from moat.regex import regex
from moat.rules import HostPattern, parse_host_pattern

_SECONDS = regex(r"([1-9][0-9]{0,3})([smh])")
_MOST = 3600  # seconds; no client waits that long


@dataclass(frozen=True, slots=True, kw_only=True)
class AskConfig:
    timeout: int = 60  # seconds until what nobody has answered is refused
    allow: tuple[HostPattern, ...] = ()  # reached without asking
    deny: tuple[HostPattern, ...] = ()  # refused without asking; decides before `allow`


def read(check: Checker, node: Node) -> AskConfig:
    """The section; what is wrong with it is noted in `check`."""
    known: dict[str, Callable[[Node], object]] = {
        "timeout": lambda value: _timeout(check, value),
        "allow": lambda value: _hosts(check, value, "ask.allow"),
        "deny": lambda value: _hosts(check, value, "ask.deny"),
    }
    found: dict[str, Any] = check.fields(node, "ask", known, {})
    return AskConfig(**found)


def seconds_of(text: str) -> int | None:
    """`90s`, `10m`, `2h` in seconds; None for anything else."""
    match = _SECONDS.fullmatch(text)
    return int(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]] if match else None


def _timeout(check: Checker, node: Node) -> int | None:
    text = check.text(node, "ask.timeout")
    seconds = seconds_of(text) if text is not None else None
    if text is not None and (seconds is None or seconds > _MOST):
        check.wrong(node, "ask.timeout must be a time from 1s to 1h, e.g. 90s or 5m")
        return None
    return seconds


def _hosts(check: Checker, node: Node, what: str) -> tuple[HostPattern, ...]:
    found: dict[HostPattern, None] = {}
    for item in check.items(node, what, '["api.example.com:443"]'):
        text = check.text(item, f"an entry of {what}")
        if text is None:
            continue
        try:
            found[parse_host_pattern(text)] = None
        except ValueError as error:
            check.wrong(item, str(error))
    return tuple(found)
