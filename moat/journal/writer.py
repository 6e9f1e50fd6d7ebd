"""Writes the journal of one run: entries in a chain, each in the kernel before `record` returns.

A process that is killed loses nothing that was recorded. `sync` brings it to the disk; it is called once a
second, off the event loop, and at the end. When the disk is full, entries wait in memory and `failed` says
why: the owner must then let nothing happen that would have to be recorded (DESIGN, invariant 8). The same
holds when the journal has reached its limit; how the run ends is written even then.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

from moat.journal import entry
from moat.journal.copies import Copies
from moat.journal.head import Head, HeadFile, boot_id
from moat.journal.key import Signer
from moat.journal.repeats import Repeats

HEAD = "journal.head"
LIMIT = 64 << 20  # bytes
_PROBE = 0.02  # seconds between two probes
_MAX_WAITING = 1_000  # entries kept while nothing can be written; more are counted
# Written beyond the limit: a sandbox cannot cause these in a loop, since no credential is used any more.
_ENDINGS = ("run.", "trace.", "journal.", "grant.used", "git.changed", "snapshot.re")


class Journal:
    """The security events of one run, in order. Only the owner of the run has one; any thread may record."""

    def __init__(
        self,
        path: Path,
        *,
        run: str = "",
        signer: Signer | None = None,
        copies: Copies | None = None,
        limit: int = LIMIT,
    ) -> None:
        """Begin a journal at `path` and its head beside it. Raises OSError, also when there is one already.

        signer: None: a key that nobody keeps, for tests. copies: get every line once it is written.
        limit: bytes; beyond it nothing but the end of the run is written.
        """
        self._signer = signer or Signer.ephemeral()
        self._run = run
        self._copies = copies or Copies()
        self._limit = limit
        self._full = False
        self._repeats = Repeats(self.record)
        self._lock = threading.RLock()
        self._pending: list[bytes] = []
        self._lost = 0
        self._seq = 0
        self._prev = entry.FIRST
        self._written = (0, entry.FIRST)  # number and hash of the newest entry in the file
        self._size = 0
        self._synced = 0
        self._syncing = threading.Lock()
        self._closed = False
        self._boot = boot_id()
        self._failed: OSError | None = None
        self._probed = 0.0  # monotonic
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)
        try:
            self._head = HeadFile(path.with_name(HEAD))
        except OSError:  # no descriptor is left
            os.close(self._fd)
            raise
        self.record("journal.opened", format=1, key=self._signer.public)
        self._raise_if_failed()

    @property
    def failed(self) -> OSError | None:
        """Why the newest entries are not where they have to be: nothing may happen that would need one."""
        if self._failed is not None:
            return self._failed
        if self._full:
            return OSError(errno.EFBIG, f"it has reached its limit of {self._limit:,} bytes")
        missing = self._copies.failed
        return None if missing is None else copy_error(*missing)

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return self._full

    @property
    def filled(self) -> float:
        """How much of the limit is used; 1.0: all."""
        return self._size / self._limit

    @property
    def last(self) -> tuple[int, str]:
        """Number and hash of the newest entry."""
        return self._seq, self._prev

    def record(self, event: str, **data: Any) -> bool:
        """Note an event (`ssh.signed`). No secret may be in `data`; docs/audit.md lists events and fields.

        False: it could not be written; it waits and is tried again at the next call. Never raises.
        """
        with self._lock:
            if not self._closed:
                if self._admits(event):
                    self._add(event, data)
                else:
                    self._lost += 1
                self._write()
            return self.failed is None and not self._closed

    def often(self, event: str, **data: Any) -> bool:
        """`record` for what a sandbox can cause in a loop: repeats are counted, see `Repeats`."""
        self._repeats.add(event, data)
        with self._lock:
            return self.failed is None and not self._closed

    def note_repeats(self) -> None:
        """Write what `often` has counted."""
        self._repeats.flush()

    def retry(self) -> None:
        """Write what could not be written, when there is something."""
        with self._lock:
            if self._failed and not self._closed:
                self._write()

    def probe(self) -> None:
        """Find out, before something happens, whether the journal can still be written.

        A file system that has turned read-only, or a disk that is gone, would otherwise show at the next
        entry, which for a repeated use comes later. (A full disk shows at the next entry only.)
        """
        now = time.monotonic()
        if now - self._probed < _PROBE:
            return
        self._probed = now
        with self._lock:
            if self._failed is None and not self._closed:
                try:
                    self._untouched()
                    self._head.again()
                except OSError as error:
                    self._failed = error

    def sync(self) -> None:
        """Bring the entries so far to the disk. Blocks, so not for an event loop."""
        with self._syncing:
            seq = self._written[0]
            if self._closed or seq == self._synced:
                return
            try:
                os.fdatasync(self._fd)
                with self._lock:
                    self._synced = seq
                    self._commit()
            except OSError as error:
                self._failed = error

    def seal(self) -> bool:
        """Record the end, sync and close. False: the end is not on the disk, the journal stays unsealed."""
        self._repeats.flush()
        with self._lock:
            entries = self._seq + (2 if self._lost else 1)
            self.record("journal.sealed", entries=entries)
        self.sync()
        try:
            self._head.sync()
        except OSError as error:
            self._failed = error
        self.close()
        return self._failed is None

    def close(self) -> None:
        """Stop without the seal, as a crash would."""
        with self._syncing, self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._fd)
                self._head.close()

    def _raise_if_failed(self) -> None:
        if self._failed:
            self.close()
            raise self._failed

    # --- writing ---------------------------------------------------------------------------------

    def _admits(self, event: str) -> bool:
        if not self._full and self._size >= self._limit and not event.startswith("journal."):
            self._full = True
            self._append("journal.full", {"bytes": self._limit})
        return not self._full or event.startswith(_ENDINGS)

    def _add(self, event: str, data: dict[str, Any]) -> None:
        if len(self._pending) >= _MAX_WAITING:
            self._lost += 1
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            self._append("journal.lost", {"entries": lost})
        self._append(event, data)

    def _append(self, event: str, data: dict[str, Any]) -> None:
        self._seq += 1
        line = entry.compose(
            seq=self._seq,
            at=time.time(),
            run=self._run,
            event=event,
            data=data,
            prev=self._prev,
            sign=self._signer,
        )
        self._prev = entry.digest(line)
        self._pending.append(line)

    def _write(self) -> None:
        """Everything that waits in one write, and then the head. A write that fails leaves no half line."""
        written: list[bytes] = []
        try:
            self._untouched()
            if self._pending:
                self._write_all(b"\n".join(self._pending) + b"\n")
                written, self._pending = self._pending, []
                self._written = self._seq, self._prev
            self._commit()
            self._failed = None
        except OSError as error:
            self._failed = error
        if written:
            self._copies.put(written)

    def _write_all(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)

    def _untouched(self) -> None:
        """Whoever cut, replaced or removed the file meanwhile is noticed here, and again by `moat audit`."""
        info = os.fstat(self._fd)
        if info.st_size != self._size or info.st_nlink != 1:
            raise OSError(errno.ESTALE, "somebody else changed the journal")

    def _commit(self) -> None:
        seq, line_hash = self._written
        self._head.write(Head(self._run, seq, line_hash, self._synced, self._boot), self._signer)


def remedy(error: OSError) -> str:
    """What the user can do about it."""
    if error.errno == errno.EROFS:
        return "make the file system writable where Moat keeps its runs, then try again"
    return "free space where Moat keeps its runs, then try again"


def copy_error(place: str, error: OSError) -> OSError:
    """The error of a journal whose copy fails."""
    reason = error.strerror or str(error)
    return OSError(error.errno or errno.EIO, f"its copy to {place} fails: {reason}")
