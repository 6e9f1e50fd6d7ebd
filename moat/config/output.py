"""`output` of `~/.moat/config.yaml`: how much of what a run prints is kept."""

from __future__ import annotations

from typing import Any

from moat.config import size
from moat.config.check import Checker, Node
from moat.dataclass import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputConfig:
    max_size: int = 1 << 30  # bytes of a run's log: days of a busy agent, and 15 seconds of `yes`


def read(check: Checker, node: Node) -> OutputConfig:
    known = {"max_size": lambda item: size.read(check, item, "output.max_size")}
    found: dict[str, Any] = check.fields(node, "output", known, {})
    return OutputConfig(**found)
