"""Sizes as they are written: `512k`, `64m`, `2g`, in powers of 1024."""

from __future__ import annotations

from moat.config.check import Checker, Node
from moat.regex import regex

_SIZE = regex(r"([1-9][0-9]{0,5})([kmg])")
_LEAST, _MOST = 16 << 10, 64 << 30  # bytes


def read(check: Checker, node: Node, what: str) -> int | None:
    """Bytes: at least 16k, at most 64g."""
    text = check.matching(node, what, _SIZE, "a size, e.g. 512k, 64m or 2g")
    match = _SIZE.fullmatch(text or "")
    if match is None:
        return None
    size = int(match[1]) << {"k": 10, "m": 20, "g": 30}[match[2]]
    if not _LEAST <= size <= _MOST:
        check.wrong(node, f"{what} must be between 16k and 64g")
        return None
    return size
