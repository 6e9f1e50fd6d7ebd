"""What changed inside files, as patches that `git apply` takes.

The contents are the agent's. `diff` compares them (difflib takes hours for inputs that are made for it),
with a deadline; big files and binary ones are told and not shown.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from moat.dataclass import dataclass
from moat.runtime.snapshots.diff import Change
from moat.runtime.snapshots.entry import DIRECTORY, FILE, LINK, Entry
from moat.runtime.snapshots.errors import SnapshotError
from moat.runtime.snapshots.places import Places
from moat.runtime.snapshots.store import Store
from moat.runtime.snapshots.walk import open_root

LARGEST = 4 << 20  # bytes of a file that is compared line by line
_PROBE = 8000  # bytes in which a NUL makes a file binary, as for git
_DEADLINE = 20.0
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Patch:
    head: bytes
    body: bytes = b""  # hunks
    note: str = ""  # why there are none

    @property
    def added(self) -> int:
        return sum(line.startswith(b"+") for line in self.body.splitlines())

    @property
    def removed(self) -> int:
        return sum(line.startswith(b"-") for line in self.body.splitlines())


class Kept:
    """Contents as a snapshot holds them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self, entry: Entry) -> bytes:
        return b"".join(self._store.objects.pieces(entry.data))


class Now:
    """Contents as they are in the workspace."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self, entry: Entry) -> bytes:
        """Raises SnapshotError when it is no longer what was compared."""
        root = open_root(self._store.workspace)
        try:
            with Places(root) as places:
                parent, name = places.parent(entry.path)
                fd = os.open(name, _OPEN, dir_fd=parent)
                with open(fd, "rb") as file:
                    if not stat.S_ISREG(os.fstat(fd).st_mode):
                        raise SnapshotError(f"{entry.path} changed meanwhile")
                    return file.read(LARGEST + 1)
        except OSError as error:
            raise SnapshotError(f"cannot read {entry.path}: {error.strerror}") from None
        finally:
            os.close(root)


def patch(change: Change, before: Kept | Now, after: Kept | Now) -> Patch:
    """One change as a patch. Raises SnapshotError."""
    head = b"\n".join(_head(change)) + b"\n"
    sides = [(side, source) for side, source in ((change.before, before), (change.after, after)) if side]
    if any(side.kind == DIRECTORY for side, _ in sides):
        return Patch(head, note="a directory")
    if any(side.kind == FILE and (side.size > LARGEST or side.segments is not None) for side, _ in sides):
        sizes = " → ".join(f"{side.size:,}" for side, _ in sides)
        return Patch(head, note=f"too big to be compared line by line ({sizes} bytes)")
    old = _content(change.before, before)
    new = _content(change.after, after)
    if old == new:
        return Patch(head)
    if b"\0" in old[:_PROBE] or b"\0" in new[:_PROBE]:
        return Patch(head, note=f"binary files differ ({len(old):,} → {len(new):,} bytes)")
    names = b"--- %b\n+++ %b\n" % (
        quoted("a/" + change.path) if change.before else b"/dev/null",
        quoted("b/" + change.path) if change.after else b"/dev/null",
    )
    body = _hunks(old, new)
    if body is None:
        return Patch(head, note="comparing takes too long")
    return Patch(head + names, body)


def _head(change: Change) -> Iterator[bytes]:
    yield b"diff --git %b %b" % (quoted("a/" + change.path), quoted("b/" + change.path))
    before, after = change.before, change.after
    if before is None and after is not None:
        yield b"new file mode %o" % _mode(after)
    elif after is None and before is not None:
        yield b"deleted file mode %o" % _mode(before)
    elif before is not None and after is not None and _mode(before) != _mode(after):
        yield b"old mode %o" % _mode(before)
        yield b"new mode %o" % _mode(after)


def _mode(entry: Entry) -> int:
    types = {FILE: stat.S_IFREG, LINK: stat.S_IFLNK, DIRECTORY: stat.S_IFDIR}
    return types[entry.kind] | (0 if entry.kind == LINK else entry.mode)


def _content(entry: Entry | None, source: Kept | Now) -> bytes:
    if entry is None:
        return b""
    return os.fsencode(entry.data) if entry.kind == LINK else source.read(entry)


def _hunks(old: bytes, new: bytes) -> bytes | None:
    with tempfile.TemporaryDirectory(prefix="moat-diff-") as place:
        a, b = Path(place, "a"), Path(place, "b")
        a.write_bytes(old)
        b.write_bytes(new)
        with contextlib.suppress(subprocess.TimeoutExpired):
            try:
                done = subprocess.run(
                    ["diff", "-a", "-u", "--label", "a", "--label", "b", "--", a, b],
                    capture_output=True,
                    check=False,
                    timeout=_DEADLINE,
                    env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
                    cwd="/",
                )
            except FileNotFoundError:
                raise SnapshotError("there is no `diff` on this machine", hint="install diffutils") from None
            return done.stdout.split(b"\n", 2)[2] if done.stdout.count(b"\n") > 2 else b""
    return None


def quoted(path: str) -> bytes:
    """A path as git writes it: in quotes with escapes when it has to be."""
    data = os.fsencode(path)
    if all(32 <= byte < 127 and byte not in b'"\\' for byte in data):
        return data
    named = {9: b"\\t", 10: b"\\n", 13: b"\\r", 34: b'\\"', 92: b"\\\\"}
    parts = [named.get(byte) or (bytes([byte]) if 32 <= byte < 127 else b"\\%03o" % byte) for byte in data]
    return b'"' + b"".join(parts) + b'"'
