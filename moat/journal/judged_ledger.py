"""The ledger as it was read at one time, and what can be said of its chain and its end."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import cached_property

from moat.journal import entry, head as heads, ledger
from moat.journal.chain import chain, read
from moat.journal.entry import Entry
from moat.journal.key import verifies
from moat.paths import Home

_HEADLESS = b'"event":"' + ledger.HEADLESS.encode()
_RUN = re.compile(rb'"run":"([^"]*)"')  # its first match in an entry is the member


class Ledger:
    """Lines are judged once, however many runs are asked about."""

    def __init__(self, data: bytes, committed: bytes | None, keys: Collection[str]) -> None:
        self._data = data
        self.lines = data.split(b"\n")[:-1]
        self.committed = committed
        self.problems = ledger_problems(self.lines, committed, keys)

    @classmethod
    def read(cls, home: Home, keys: Collection[str], before: Ledger | None = None) -> Ledger:
        """`before`: what was read last, with the same keys; it is taken again if nothing has changed."""
        committed = read(ledger.head_of(home))  # the older thing first: it was written after the other
        data = read(ledger.path_of(home)) or b""
        if before is not None and (before.committed, before._data) == (committed, data):
            return before
        return cls(data, committed, keys)

    @property
    def headless(self) -> bool:
        """Whether nothing commits to its end."""
        return bool(self.lines) and (self.committed is None or heads.parse(self.committed) is None)

    def was_headless(self, since: str = "") -> bool:
        """Whether that was so at any time, or at any since it knows of a run."""
        first = 0
        if since:
            first = next((n for n, line in enumerate(self.lines) if _run_of(line) == since.encode()), 0)
        return any(_HEADLESS in line for line in self.lines[first:])

    def about(self, run: str) -> list[bytes]:
        """The lines that are about one run."""
        return ledger.about(self._by_run.get(run.encode(), []), run)

    @cached_property
    def _by_run(self) -> dict[bytes, list[bytes]]:
        found: dict[bytes, list[bytes]] = {}
        for line in self.lines:
            found.setdefault(_run_of(line), []).append(line)
        return found


def _run_of(line: bytes) -> bytes:
    match = _RUN.search(line)
    return match[1] if match else b""


def ledger_problems(lines: Sequence[bytes], committed: bytes | None, keys: Collection[str]) -> list[str]:
    """What is wrong with the chain of the ledger. `committed`: its head, read before `lines` were."""
    entries, problem = chain(lines)
    if problem:
        return [problem]
    if entries and keys and not _signed(entries[-1], keys):
        return ["its last line is not signed by this installation"]
    head = heads.parse(committed) if committed is not None else None
    if head is None or not keys:
        return []
    if head.run or not any(verifies(key, head.signature, head.signed) for key in keys):
        return ["ledger.head was changed"]
    if head.seq > len(lines):
        return [f"entries {len(lines) + 1} to {head.seq} are missing at the end"]
    if head.hash != entry.digest(lines[head.seq - 1]):
        return [f"entry {head.seq} is not the one that ledger.head commits to"]
    return []


def _signed(found: Entry, keys: Collection[str]) -> bool:
    return any(verifies(key, found.signature, found.signed) for key in keys)
