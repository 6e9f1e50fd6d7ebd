"""Whether entries belong where they stand: numbered without a gap, each naming the one before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moat.journal import entry
from moat.journal.entry import Entry, NotAnEntryError
from moat.journal.key import verifies


def chain(lines: Sequence[bytes], run_id: str | None = None) -> tuple[list[Entry], str]:
    """The entries up to the first that does not belong where it stands, and what is wrong there."""
    entries: list[Entry] = []
    for number, line in enumerate(lines, 1):
        try:
            found = entry.parse(line)
        except NotAnEntryError as error:
            return entries, f"entry {number} was changed: {error}"
        before = entries[-1] if entries else None
        if found.seq > number:
            return entries, f"entries {number} to {found.seq - 1} are missing"
        if found.seq < number:
            return entries, f"entry {number} was inserted or moved: it says it is number {found.seq}"
        if run_id is not None and found.run != run_id:
            return entries, f"entry {number} is of another run, {found.run}"
        if found.prev != (entry.digest(before.line) if before else entry.FIRST):
            return entries, _changed(entries, number)
        entries.append(found)
    return entries, ""


def _changed(entries: list[Entry], number: int) -> str:
    """Which of two entries that do not fit together was changed, in words."""
    before = entries[-1] if entries else None
    key = str(entries[0].data.get("key", "")) if entries else ""
    if before and key and not verifies(key, before.signature, before.signed):
        return f"entry {number - 1} was changed"
    return f"entry {number} does not follow what stands before it: one of them was changed"


def read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
