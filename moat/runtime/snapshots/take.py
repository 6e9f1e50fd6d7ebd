"""Taking a snapshot: a walk joined with what the last one found, so that only changes are read.

A file is taken for unchanged when device, inode, size, mtime and ctime are as they were, and its times
are old enough that a later write must have given it others ("racily clean" in git's words): what
changed within RACY of the last walk, or after it, is read again.

A process that has mapped a file can change it without any of these changing, as long as the page that it
writes to is dirty. So when a sandbox is alive, everything is written to the disk first: file systems that
then notice the next write give the file another ctime. On others, what changed is read each time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator

from moat.config import SnapshotConfig
from moat.dataclass import dataclass
from moat.runtime.snapshots import attributes
from moat.runtime.snapshots.attributes import Attributes
from moat.runtime.snapshots.entry import (
    DIRECTORY,
    FILE,
    LINK,
    OTHER,
    Entry,
    Segments,
    Stamp,
    order,
    pack,
    permissions,
    stamp_of,
)
from moat.runtime.snapshots.errors import TOO_MANY_HINT, SnapshotError, disk_error
from moat.runtime.snapshots.flush import flush
from moat.runtime.snapshots.ignore import Rules
from moat.runtime.snapshots.objects import SMALL, Hasher, ScatteredError, Writer, find_segments, read_segments
from moat.runtime.snapshots.store import Kind, Missing, Row, Snapshot, Store, new_id
from moat.runtime.snapshots.walk import Found, open_root, walk

RACY = 2_000_000_000  # nanoseconds: the coarsest clock of a file system in use
MAX_SEGMENTS = 10_000
MAX_TREE = 1 << 30  # bytes of all its lines: they hold whole paths, which cost an agent next to nothing
_THINNEST = 16  # a file in more segments is read as a whole when it is at most so many times what it holds
_TRIES = 3  # for a file that changes while it is read
_TOLD = 100
_UNKNOWN = Stamp()
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_TYPES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

Tell = Callable[[int, int], None]  # (entries, bytes read so far); may raise to give up


def _silent(_entries: int, _size: int) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What kind of snapshot is wanted, and of what."""

    kind: Kind
    run: str = ""
    label: str = ""
    gitignored: bool = True
    exclude: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: SnapshotConfig, kind: Kind, run: str, label: str = "") -> Wish:
        return cls(kind=kind, run=run, label=label, gitignored=config.gitignored, exclude=config.exclude)

    def rules(self) -> Rules:
        return Rules.of(self.exclude, gitignore=not self.gitignored)


def take(
    store: Store, wish: Wish, *, tell: Tell = _silent, unless: str | None = None, living: bool = True
) -> Snapshot | None:
    """Take a snapshot of the store's workspace; the caller holds `store.exclusive()`.

    living: a sandbox may be using the workspace.
    unless: a tree; when the workspace is still that one, nothing is recorded and None returned.
    Raises SnapshotError; then the store is as it was.
    """
    root = open_root(store.workspace)
    try:
        store.sweep()
        with Writer(store.objects) as writer, contextlib.closing(store.tree_writer()) as tree:
            taking = _Taking(store, writer, tell)
            taking.believing = flush(root) if living else True
            for row in taking.rows(root, wish.rules()):
                tree.add(row)
            writer.publish()
            snapshot = taking.snapshot(wish, tree=tree.publish(), added=writer.added)
        if snapshot.tree == unless:
            return None
        store.add(snapshot)
        return snapshot
    except OSError as error:
        raise disk_error(error, store.root) from None
    finally:
        os.close(root)


def scan(store: Store, wish: Wish, *, tell: Tell = _silent) -> Iterator[Entry]:
    """The entries of the workspace as it is now; reads what changed and writes nothing."""
    root = open_root(store.workspace)
    try:
        for row in _Taking(store, Hasher(), tell).rows(root, wish.rules()):
            yield row.entry
    finally:
        os.close(root)


class _Taking:
    def __init__(self, store: Store, keeper: Writer | Hasher, tell: Tell) -> None:
        self._store = store
        self._keeper = keeper
        self._tell = tell
        self.believing = False  # a file that looks unchanged the next time is unchanged
        self._began = time.time_ns()
        self._cache = store.cached()
        self._cached: Row | None = next(self._cache, None)
        self._first: dict[tuple[int, int], Entry] = {}  # files with several names, by device and inode
        self._files = self._size = self._read = 0
        self._missing: list[Missing] = []
        self._missing_count = 0
        self._unsettled: list[str] = []

    def snapshot(self, wish: Wish, *, tree: str, added: int) -> Snapshot:
        return Snapshot(
            id=new_id(),
            kind=wish.kind,
            run=wish.run,
            label=wish.label,
            at=self._began / 1e9,
            tree=tree,
            workspace=self._store.workspace,
            files=self._files,
            size=self._size,
            added=added,
            gitignored=wish.gitignored,
            exclude=wish.exclude,
            missing=tuple(self._missing),
            missing_count=self._missing_count,
            unsettled=tuple(self._unsettled),
        )

    def rows(self, root: int, rules: Rules) -> Iterator[Row]:
        """Raises SnapshotError when they are more than MAX_TREE."""
        size = 0
        for row in self._rows(root, rules):
            size += len(row.line)
            if size > MAX_TREE:
                raise SnapshotError(
                    f"the names of files and directories take more than {MAX_TREE >> 20:,} MiB",
                    hint=TOO_MANY_HINT,
                )
            yield row

    def _rows(self, root: int, rules: Rules) -> Iterator[Row]:
        for found in walk(root, rules, lambda count: self._tell(count, self._read)):
            known = self._known(found.path)
            mode = found.info.st_mode
            if found.problem:
                yield self._other(found, found.problem)
            elif stat.S_ISREG(mode):
                row = self._file(found, known)
                if row is not None:
                    yield row
            elif stat.S_ISDIR(mode):
                place = f"/proc/self/fd/{found.parent}/{found.name}"
                yield _row(_entry(found, DIRECTORY)._replace(attributes=self._attributes(found.path, place)))
            elif stat.S_ISLNK(mode):
                with contextlib.suppress(OSError):
                    target = os.readlink(found.name, dir_fd=found.parent)
                    yield _row(_entry(found, LINK)._replace(data=target), stamp_of(found.info))
            else:
                yield self._other(found, _TYPES.get(stat.S_IFMT(mode), "of an unknown type"))

    def _known(self, path: str) -> Row | None:
        """What the cache says of `path`; both go through the tree in the same order."""
        if self._cached is None or self._cached.entry.path != path:
            wanted = order(path)
            while self._cached is not None and order(self._cached.entry.path) < wanted:
                self._cached = next(self._cache, None)
        row = self._cached
        if row is None or row.entry.path != path:
            return None
        self._cached = next(self._cache, None)
        return row

    def _miss(self, path: str, why: str) -> None:
        self._missing_count += 1
        if len(self._missing) < _TOLD:
            self._missing.append(Missing(path, why))

    def _attributes(self, path: str, target: int | str) -> Attributes | None:
        try:
            return attributes.read(target)
        except attributes.TooLargeError:
            self._miss(path, f"its extended attributes, of more than {attributes.LARGEST >> 10} KiB")
            return None

    def _other(self, found: Found, why: str) -> Row:
        self._miss(found.path, why)
        return _row(_entry(found, OTHER)._replace(data=why))

    def _file(self, found: Found, known: Row | None) -> Row | None:
        """None: the file is gone."""
        info = found.info
        several = info.st_nlink > 1
        first = self._first.get((info.st_dev, info.st_ino)) if several else None
        if first is not None:
            entry = _entry(found, FILE)._replace(
                size=first.size,
                data=first.data,
                segments=first.segments,
                twin=first.path,
                attributes=first.attributes,
            )
            row = _row(entry, self._stamp(info))
        elif known is not None and self._unchanged(found, known):
            row = known
        else:
            try:
                entry, info = self._contents(found)
            except FileNotFoundError:
                return None
            except OSError as error:
                return self._other(found, (error.strerror or "cannot be read").lower())
            if entry.kind == OTHER:
                return self._other(found, entry.data)
            row = _row(entry, self._stamp(info))
        if several and first is None:
            self._first[info.st_dev, info.st_ino] = row.entry
        self._files += 1
        self._size += row.entry.size
        return row

    def _stamp(self, info: os.stat_result) -> Stamp:
        settled = max(info.st_ctime_ns, info.st_mtime_ns) < self._began - RACY
        return stamp_of(info) if settled and self.believing else _UNKNOWN

    def _unchanged(self, found: Found, known: Row) -> bool:
        """Mode, owner and link count cannot change without another ctime either."""
        entry, stamp, _ = known
        info = found.info
        return (
            stamp == stamp_of(info)
            and entry.kind == FILE
            and entry.size == info.st_size
            and entry.mtime == info.st_mtime_ns
            and not entry.twin  # the first of several names may be gone
            and entry.data in self._store.objects
        )

    def _contents(self, found: Found) -> tuple[Entry, os.stat_result]:
        """Read a file until it holds still. Raises OSError."""
        fd = os.open(found.name, _OPEN, dir_fd=found.parent)
        try:
            for _ in range(_TRIES):
                info = os.fstat(fd)
                if not stat.S_ISREG(info.st_mode):
                    return _entry(found, OTHER)._replace(data="it changed its type"), info
                key, segments = self._keep(fd, info)
                if _same(info, os.fstat(fd)):
                    break
            else:
                if len(self._unsettled) < _TOLD:
                    self._unsettled.append(found.path)
            entry = _entry(found._replace(info=info), FILE)
            own = self._attributes(found.path, fd)
            return entry._replace(size=info.st_size, data=key, segments=segments, attributes=own), info
        finally:
            os.close(fd)

    def _keep(self, fd: int, info: os.stat_result) -> tuple[str, Segments | None]:
        """Put the content into the store: its name, and where it belongs when the file is sparse."""
        size, held = info.st_size, info.st_blocks * 512
        try:
            segments = find_segments(fd, size, MAX_SEGMENTS) if held < size else None
        except ScatteredError:
            if size > _THINNEST * held:  # its holes would be read for years
                raise OSError(errno.EFBIG, f"a sparse file in more than {MAX_SEGMENTS:,} pieces") from None
            segments = None
        parts = [(0, size)] if segments is None else segments
        amount = sum(length for _, length in parts)
        self._read += amount
        self._tell(0, self._read)
        if amount <= SMALL:
            return self._keeper.add(b"".join(read_segments(fd, parts))), segments
        return self._keeper.add_stream(fd, parts, dense=segments is None), segments


def _entry(found: Found, kind: str) -> Entry:
    info = found.info
    return Entry(found.path, kind, permissions(info), info.st_mtime_ns, info.st_uid, info.st_gid)


def _row(entry: Entry, stamp: Stamp = _UNKNOWN) -> Row:
    return Row(entry, stamp, pack(entry))


def _same(a: os.stat_result, b: os.stat_result) -> bool:
    return (a.st_size, a.st_mtime_ns, a.st_ctime_ns) == (b.st_size, b.st_mtime_ns, b.st_ctime_ns)
