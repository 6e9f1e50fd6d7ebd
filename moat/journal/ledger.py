"""`journal/ledger.jsonl`: every journal that was begun, closed or removed on this installation, in one chain.

What the user does to a workspace while no run is alive there has no journal of a run: it is entered here
too, as an event of a journal with an empty `run` and the `workspace`.

It notices what a run's own directory cannot tell: that the whole directory is gone, or that it was
replaced by an older, honest version of itself. Entries have the format of a journal's, with the run that
they are about; several processes append under a lock, and each append is synced.

`ledger.head` beside it commits to the newest entry. Who appends goes on from there, not from what the file
says: what was cut off, replaced or forged at the end stays visible as a break in the chain.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moat.dataclass import dataclass
from moat.journal import entry, head as heads
from moat.journal.entry import Entry, NotAnEntryError
from moat.journal.head import Head
from moat.journal.key import Signer, installation_key, verifies
from moat.paths import Home, locked, private_dir

OPENED, CLOSED, REMOVED = "ledger.opened", "ledger.closed", "ledger.removed"
HEADLESS = "ledger.headless"  # its head was missing or torn: what stands before may have lost its end
_LOCK = "ledger.lock"


@dataclass(frozen=True, slots=True)
class Known:
    """What the ledger tells of one run."""

    first: str  # hash of the journal's first entry
    entries: int | None = None  # of the closed journal; None: it was not closed
    last: str = ""  # hash of its last entry
    removed: bool = False  # by `moat destroy` or `moat clean`


def path_of(home: Home) -> Path:
    return home.journal / "ledger.jsonl"


def head_of(home: Home) -> Path:
    return home.journal / "ledger.head"


def append(home: Home, signer: Signer, run: str, event: str, **data: Any) -> None:
    """Add one line. Raises OSError when it cannot be written; then nothing of it remains."""
    private_dir(home.journal)
    with locked(home.journal / _LOCK):
        fd = os.open(path_of(home), os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _Appending(fd, head_of(home), signer).add(run, event, data)
        finally:
            os.close(fd)


def note(home: Home, event: str, *, workspace: str, **data: Any) -> None:
    """Enter what was done to a workspace outside of any run. Raises OSError, MoatError."""
    append(home, installation_key(home), "", event, workspace=workspace, **data)


def notes(home: Home, workspace: str) -> list[Entry]:
    """What `note` has entered for a workspace, unverified, oldest first."""
    return [e for e in _entries(lines(home)) if not e.run and e.data.get("workspace") == workspace]


class _Appending:
    """The ledger under its lock."""

    def __init__(self, fd: int, head: Path, signer: Signer) -> None:
        self._fd = fd
        self._head = head
        self._signer = signer

    def add(self, run: str, event: str, data: Mapping[str, Any]) -> None:
        size, last = _end(self._fd)
        os.ftruncate(self._fd, size)  # half a line, which a crash left
        head = self._committed()
        seq, prev = self._follows(last, head)
        lines = []
        if last and head is None:
            lines.append(self._line(seq, prev, "", HEADLESS, {}))
            seq, prev = seq + 1, entry.digest(lines[0])
        lines.append(self._line(seq, prev, run, event, data))
        try:
            self._write(b"".join(line + b"\n" for line in lines))
            heads.overwrite(
                self._head, Head("", seq, entry.digest(lines[-1]), seq, heads.boot_id()), self._signer
            )
        except OSError:
            os.ftruncate(self._fd, size)
            raise

    def _committed(self) -> Head | None:
        """What the head says; None when there is none that can be read."""
        try:
            head = heads.parse(self._head.read_bytes())
        except FileNotFoundError:
            return None
        if head is None or head.run or not verifies(self._signer.public, head.signature, head.signed):
            return None
        return head

    def _follows(self, last: bytes, head: Head | None) -> tuple[int, str]:
        """Number and `prev` of the next entry: after the last one, if it is ours, else after the head's."""
        try:
            found = entry.parse(last) if last else None
        except NotAnEntryError:
            found = None
        if found is not None and head is not None and entry.digest(last) != head.hash:
            # One more than the head says is what a writer leaves that was killed in between.
            ours = verifies(self._signer.public, found.signature, found.signed)
            found = found if ours and found.seq > head.seq else None
        if found is not None:
            return found.seq + 1, entry.digest(last)
        if head is not None:
            return head.seq + 1, head.hash
        return (0, entry.digest(last)) if last else (1, entry.FIRST)  # runs go on; verification tells

    def _line(self, seq: int, prev: str, run: str, event: str, data: Mapping[str, Any]) -> bytes:
        return entry.compose(
            seq=seq, at=time.time(), run=run, event=event, data=data, prev=prev, sign=self._signer
        )

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        os.fdatasync(self._fd)


def _end(fd: int) -> tuple[int, bytes]:
    """Where the last complete line ends, and that line."""
    size = os.fstat(fd).st_size
    tail = os.pread(fd, 2 * entry.MAX_LINE, max(0, size - 2 * entry.MAX_LINE))
    whole = tail[: tail.rfind(b"\n") + 1]
    end = size - len(tail) + len(whole)
    return end, whole[:-1].rpartition(b"\n")[2]


def lines(home: Home) -> list[bytes]:
    """The complete lines, oldest first; a last one that a crash tore is left out."""
    try:
        data = path_of(home).read_bytes()
    except FileNotFoundError:
        return []
    return data.split(b"\n")[:-1]


def about(lines: Sequence[bytes], run: str) -> list[bytes]:
    """Those that are about one run. Lines that are no entries are left out."""
    mark = f'"run":"{run}"'.encode()
    return [line for line in lines if mark in line and any(e.run == run for e in _entries([line]))]


def known(lines: Sequence[bytes]) -> dict[str, Known]:
    """What the ledger says of each run. The chain is not checked here."""
    found: dict[str, Known] = {}
    for e in _entries(lines):
        before = found.get(e.run, Known(""))
        first, entries, last, removed = before.first, before.entries, before.last, before.removed
        if e.event == OPENED:
            first = str(e.data.get("first"))
        elif e.event == CLOSED:
            count = e.data.get("entries")
            entries, last = count if isinstance(count, int) else -1, str(e.data.get("last"))
        elif e.event == REMOVED:
            removed = True
        found[e.run] = Known(first, entries, last, removed)
    return found


def _entries(lines: Sequence[bytes]) -> Iterator[Entry]:
    for line in lines:
        try:
            yield entry.parse(line)
        except NotAnEntryError:
            continue
