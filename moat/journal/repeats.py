"""Events that a sandbox can cause in a loop: the first is written at once, more of the same are counted.

A journal has to tell of every one of them, and must not grow with each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from moat.dataclass import dataclass

_MAX_KINDS = 100  # told apart between two notes; a sandbox can think of endless names


@dataclass(slots=True)
class _Kind:
    event: str
    data: dict[str, Any]
    more: int = 0  # since the last note


class Repeats:
    """`record` writes an entry. Any thread may call."""

    def __init__(self, record: Callable[..., object]) -> None:
        self._record = record
        self._lock = threading.Lock()
        self._kinds: dict[str, _Kind] = {}
        self._others: dict[str, int] = {}

    def add(self, event: str, data: dict[str, Any]) -> None:
        """Write it when it is the first of its kind since the last note, else count it."""
        key = repr((event, sorted(data.items())))
        with self._lock:
            if (known := self._kinds.get(key)) is not None:
                known.more += 1
                return
            if len(self._kinds) >= _MAX_KINDS:
                self._others[event] = self._others.get(event, 0) + 1
                return
            self._kinds[key] = _Kind(event, data)
        self._record(event, **data)

    def flush(self) -> None:
        """Write what was counted; a kind that did not come again is forgotten."""
        with self._lock:
            again = [(kind.event, kind.data, kind.more) for kind in self._kinds.values() if kind.more]
            self._kinds = {key: kind for key, kind in self._kinds.items() if kind.more}
            for kind in self._kinds.values():
                kind.more = 0
            others, self._others = self._others, {}
        for event, data, count in again:
            self._record(event, **data, count=count)
        for event, count in others.items():
            self._record(event, count=count)
