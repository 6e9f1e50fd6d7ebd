"""The snapshots of one workspace on disk, shared by all runs that ever used it.

    ~/.moat/snapshots/<workspace>/
        lock              held by whoever writes here, and by a restore
        workspace         its path
        packs/ large/     objects
        trees/<sha256>    the entries of a tree, compressed; the same tree is kept once
        snapshots/<id>    JSON; appears last, so that what a snapshot names is there
        cache             the last tree with what tells that a file has not changed
        restore           a restore that has begun; gone when it is complete

Per workspace and not per run: a second run finds what the first one kept, and taking a snapshot of
an unchanged workspace costs a walk. What no snapshot needs is removed with the last one that did.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from moat.dataclass import dataclass
from moat.errors import UsageError
from moat.paths import Home, private_dir, write_private
from moat.regex import regex
from moat.runtime import codec
from moat.runtime.snapshots.entry import Entry, Stamp, unpack
from moat.runtime.snapshots.errors import SnapshotError, disk_error
from moat.runtime.snapshots.objects import Objects

_ID = regex(r"snap_[0-9a-f]{12}")
_PIECE = 1 << 16
_LINES = 1000  # that are compressed together


class Kind(StrEnum):
    PRE_RUN = "pre-run"  # before the sandbox existed
    GIT = "git"  # HEAD moved
    BUILD = "build"  # a build command ended
    IDLE = "idle"  # nothing changed for a while after changes
    MANUAL = "manual"
    SAFETY = "safety"  # before a restore


@dataclass(frozen=True, slots=True)
class Missing:
    """Something that is in the workspace and not in the snapshot."""

    path: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    id: str
    kind: Kind
    run: str  # id; empty: of no run
    at: float  # seconds since the epoch, when the walk began
    tree: str
    workspace: str
    label: str = ""
    files: int = 0
    size: int = 0  # bytes of all files
    added: int = 0  # bytes that were not in the store before
    gitignored: bool = True  # what .gitignore names was kept
    exclude: tuple[str, ...] = ()
    missing: tuple[Missing, ...] = ()  # the first hundred
    missing_count: int = 0
    unsettled: tuple[str, ...] = ()  # files that changed while they were read; the first hundred

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = codec.encode(self)
        return value


class Store:
    """Making one touches no disk."""

    def __init__(self, root: Path, workspace: str) -> None:
        self.root = root
        self.workspace = workspace
        self.objects = Objects(root)
        self._trees = root / "trees"
        self._snapshots = root / "snapshots"

    # --- snapshots -------------------------------------------------------------------------------

    def all(self) -> list[Snapshot]:
        """Every snapshot, oldest first."""
        try:
            names = [name for name in os.listdir(self._snapshots) if _ID.fullmatch(name)]
        except FileNotFoundError:
            return []
        found = []
        for name in names:
            with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
                found.append(codec.decode(Snapshot, json.loads((self._snapshots / name).read_bytes())))
        return sorted(found, key=lambda snapshot: (snapshot.at, snapshot.id))

    def of_run(self, run: str) -> list[Snapshot]:
        return [snapshot for snapshot in self.all() if snapshot.run == run]

    def find(self, text: str) -> Snapshot:
        """By id or unique prefix of it. Raises UsageError."""
        found = [snapshot for snapshot in self.all() if snapshot.id.startswith(text)]
        if len(found) == 1:
            return found[0]
        what = "no snapshot" if not found else f"{len(found)} snapshots"
        raise UsageError(f"{what} {text!r} of {self.workspace}", hint="`moat snapshot list` shows them")

    def add(self, snapshot: Snapshot) -> None:
        """Last step of taking one. Raises SnapshotError."""
        try:
            write_private(self._snapshots / snapshot.id, json.dumps(snapshot.to_json(), indent=1).encode())
        except OSError as error:
            raise disk_error(error, self.root) from None

    def remove(self, snapshot: Snapshot) -> None:
        """Forget a snapshot; `retention.collect` frees what only it needed."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._snapshots / snapshot.id)

    # --- trees -----------------------------------------------------------------------------------

    def tree(self, key: str) -> Iterator[Entry]:
        """The entries of a tree in walking order. Raises SnapshotError when it is damaged."""
        digest = hashlib.sha256()
        try:
            for line in _lines(self._trees / key):
                digest.update(line + b"\n")
                yield unpack(line)
        except (OSError, ValueError, TypeError, zlib.error) as error:
            raise SnapshotError(f"tree {key[:12]} cannot be read: {error}") from None
        if digest.hexdigest() != key:
            raise SnapshotError(f"tree {key[:12]} is damaged")

    def tree_names(self) -> list[str]:
        try:
            return [name for name in os.listdir(self._trees) if not name.startswith((".", "tmp-"))]
        except FileNotFoundError:
            return []

    def drop_tree(self, key: str) -> None:
        os.unlink(self._trees / key)

    def cached(self) -> Iterator[Row]:
        """The last tree; ends early where the cache is damaged: then more is read anew."""
        with contextlib.suppress(OSError, ValueError, TypeError), (self.root / "cache").open("rb") as file:
            for text in file:
                line, _, stamp = text.partition(b"\t")
                yield Row(unpack(line), Stamp(*map(int, stamp.split(b" "))), line)

    def tree_writer(self) -> TreeWriter:
        private_dir(self._trees)
        return TreeWriter(self._trees, self.root / "cache")

    # --- one writer at a time --------------------------------------------------------------------

    @contextlib.contextmanager
    def exclusive(self, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Be the only one who writes here. `waiting` is called once when somebody else is at it."""
        fd = self._lock(waiting)
        try:
            self.objects.forget_index()
            if not (self.root / "workspace").exists():
                write_private(self.root / "workspace", os.fsencode(self.workspace))
            yield
        finally:
            os.close(fd)

    def _lock(self, waiting: Callable[[], None]) -> int:
        while True:
            private_dir(self.root.parent)
            private_dir(self.root)
            fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    waiting()
                    fcntl.flock(fd, fcntl.LOCK_EX)
                # Whoever had it may have removed the store with its last snapshot.
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(fd), os.stat(self.root / "lock")):
                        return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """While this is held no object goes away."""
        try:
            fd = os.open(self.root / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            yield
        finally:
            os.close(fd)

    def sweep(self) -> None:
        """Remove what a process that died while writing left behind. Only while `exclusive`."""
        self.objects.sweep()
        for directory in (self._trees, self._snapshots, self.root):
            with contextlib.suppress(FileNotFoundError):
                for name in os.listdir(directory):
                    if name.startswith((".", "tmp-")):
                        os.unlink(directory / name)

    def destroy(self) -> None:
        import shutil  # with its compressors 5 ms

        shutil.rmtree(self.root, ignore_errors=True)


class Row(NamedTuple):
    """An entry on its way into a tree: what it is, when to believe it, and how it is written."""

    entry: Entry
    stamp: Stamp
    line: bytes


class TreeWriter:
    """Writes a tree and its cache, entry by entry."""

    def __init__(self, trees: Path, cache: Path) -> None:
        name = f"tmp-{os.urandom(8).hex()}"
        self._trees, self._cache = trees, cache
        self._path, self._cache_path = trees / name, cache.parent / name
        self._file = open(self._path, "xb")  # noqa: SIM115 - closed by `close`
        self._cache_file = open(self._cache_path, "xb")  # noqa: SIM115 - as above
        self._compress = zlib.compressobj(1)
        self._digest = hashlib.sha256()
        self._lines: list[bytes] = []

    def add(self, row: Row) -> None:
        self._lines.append(row.line)
        self._cache_file.write(b"%b\t%d %d %d\n" % (row.line, *row.stamp))
        if len(self._lines) == _LINES:
            self._flush()

    def _flush(self) -> None:
        self._lines.append(b"")
        data = b"\n".join(self._lines)
        self._digest.update(data)
        self._file.write(self._compress.compress(data))
        self._lines.clear()

    def publish(self) -> str:
        """The tree's name, once it is on the disk."""
        self._flush()
        key = self._digest.hexdigest()
        self._file.write(self._compress.flush())
        self._file.flush()
        if (self._trees / key).exists():
            os.unlink(self._path)
        else:
            os.fsync(self._file.fileno())
            os.rename(self._path, self._trees / key)
        self._cache_file.close()
        os.rename(self._cache_path, self._cache)
        return key

    def close(self) -> None:
        for file in (self._file, self._cache_file):
            with contextlib.suppress(OSError):  # a full disk has been told by then
                file.close()
        for path in (self._path, self._cache_path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def _lines(path: Path) -> Iterator[bytes]:
    inflate = zlib.decompressobj()
    rest = b""
    with path.open("rb") as file:
        while data := file.read(_PIECE):
            *lines, rest = (rest + inflate.decompress(data)).split(b"\n")
            yield from lines
    *lines, rest = (rest + inflate.flush()).split(b"\n")
    yield from lines
    if rest or not inflate.eof:
        raise ValueError("it ends in the middle")


def new_id() -> str:
    return f"snap_{os.urandom(6).hex()}"


def open_store(home: Home, workspace: Path | str) -> Store:
    """The store of a workspace, whether there is one yet or not."""
    place = os.path.realpath(workspace)
    name = hashlib.sha256(os.fsencode(place)).hexdigest()[:16]
    return Store(home.root / "snapshots" / name, place)


def stores(home: Home) -> list[Store]:
    """Every store there is."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for path in sorted((home.root / "snapshots").iterdir()):
            with contextlib.suppress(OSError):
                found.append(Store(path, os.fsdecode((path / "workspace").read_bytes())))
    return found
