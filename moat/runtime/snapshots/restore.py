"""Bringing a tree back, in place or somewhere else.

In place nothing is lost, whenever it is cut off: a safety snapshot is taken first, the restore is noted
in the store until it is complete, each file is replaced by rename. A restore that was cut off is simply
done again from whatever there is by then. Only what the safety snapshot holds is removed or replaced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from moat.dataclass import dataclass
from moat.runtime.git.fence import HERE, READ_ONLY
from moat.runtime.snapshots import attributes
from moat.runtime.snapshots.diff import Change, below, exactly, merge
from moat.runtime.snapshots.entry import DIRECTORY, FILE, LINK, Entry
from moat.runtime.snapshots.errors import SnapshotError
from moat.runtime.snapshots.flush import flush
from moat.runtime.snapshots.objects import Objects
from moat.runtime.snapshots.pending import Pending, write_pending
from moat.runtime.snapshots.places import Places
from moat.runtime.snapshots.store import Kind, Missing, Snapshot, Store
from moat.runtime.snapshots.take import Tell, Wish, take
from moat.runtime.snapshots.walk import open_root

TEMPORARY = ".moat-restore-"
_GUARDED = frozenset(READ_ONLY)
# What is wrong with one path and no other.
_OF_ONE = frozenset(
    (
        *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EPERM, errno.EACCES),
        # A file system that cannot have it, unlike the first one.
        *(errno.EFBIG, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EMLINK, errno.EOPNOTSUPP),
    )
)
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    target: Snapshot
    safety: Snapshot | None  # None: nothing had to be changed, or it was another directory
    changed: int = 0  # paths that were written
    removed: int = 0
    left: tuple[Missing, ...] = ()  # what was not touched, and why


def _nothing(_done: int, _of: int) -> None:
    """Nobody wants to know."""


Told = Callable[[int, int], None]  # (paths done, of how many)


def restore(
    store: Store,
    target: Snapshot,
    paths: tuple[str, ...] = (),
    *,
    run: str = "",
    living: bool = True,
    tell: Tell = lambda _entries, _size: None,
    told: Told = _nothing,
) -> Restored:
    """Make the workspace, or `paths` in it, what `target` holds. The caller holds `store.exclusive()`.

    run: whose snapshot the safety snapshot is. living: a sandbox uses the workspace.
    Raises SnapshotError; the workspace may then be half restored, which `read_pending` tells, and
    `restore` again completes.
    """
    wish = Wish(
        kind=Kind.SAFETY,
        run=run,
        label=f"before restoring {target.id}",
        gitignored=target.gitignored,
        exclude=target.exclude,
    )
    safety = take(store, wish, tell=tell, living=living)
    assert safety is not None
    wanted = below(paths)
    left: list[Missing] = []
    changes = list(_bring_back(store.tree(safety.tree), store.tree(target.tree), left, wanted))
    if living:
        changes = list(_without_guarded(changes, left))
    if not changes:
        store.remove(safety)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(store.root / "restore")
        return Restored(target=target, safety=None, left=tuple(left))
    _check(store, changes)
    note = Pending(target=target.id, safety=safety.id, paths=paths, at=time.time())
    write_pending(store, note)
    root = open_root(store.workspace)
    try:
        with Places(root) as places:
            work = _Work(store.objects, places, left, wanted, told)
            work.run(changes, lambda: (e for e in store.tree(target.tree) if e.kind == DIRECTORY))
        flush(root)  # before the note goes
    except OSError as error:
        raise _cut_off(error) from None
    finally:
        os.close(root)
    os.unlink(store.root / "restore")
    return Restored(
        target=target, safety=safety, changed=work.changed, removed=work.removed, left=tuple(work.left)
    )


def restore_to(
    store: Store, target: Snapshot, place: Path, paths: tuple[str, ...] = (), *, told: Told = _nothing
) -> Restored:
    """Write what `target` holds, or `paths` of it, into the new or empty directory `place`."""
    wanted = below(paths)
    ways = {"/".join(path.split("/")[:n]) for path in paths for n in range(1, path.count("/") + 1)}
    changes = [
        Change(entry.path, None, entry)
        for entry in store.tree(target.tree)
        if entry.kept and (wanted(entry.path) or (entry.path in ways and entry.kind == DIRECTORY))
    ]
    _check(store, changes)
    place.mkdir(parents=True, exist_ok=True)
    if any(place.iterdir()):
        raise SnapshotError(f"{place} is not empty", hint="name a directory that does not exist")
    root = open_root(os.path.realpath(place))
    try:
        with Places(root) as places:
            work = _Work(store.objects, places, [], wanted, told)
            work.run(changes, lambda: iter(()))
    except OSError as error:
        raise SnapshotError(f"cannot write to {place}: {error.strerror}") from None
    finally:
        os.close(root)
    return Restored(target=target, safety=None, changed=work.changed, left=tuple(work.left))


def _bring_back(
    now: Iterable[Entry], then: Iterable[Entry], left: list[Missing], wanted: Callable[[str], bool]
) -> Iterator[Change]:
    """What has to change. Of what was not kept then, or cannot be kept now, nothing is touched."""
    unknown: dict[str, str] = {}  # path -> what to tell of what is below it, if that is all that is wanted
    for a, b in merge(now, then):
        entry = a or b
        assert entry is not None
        if b is not None and not b.kept:
            unknown[b.path] = ""
            if a is not None and a.kept and wanted(b.path):
                left.append(Missing(b.path, f"it was not kept then: {b.data}"))
        elif a is not None and not a.kept:
            unknown[a.path] = f"what is at {a.path} cannot be kept: {a.data}"
            if b is not None and wanted(b.path):
                left.append(Missing(b.path, f"what is there cannot be kept: {a.data}"))
        elif a is None or b is None or not exactly(a, b):
            above = next((path for path in _ancestors(entry.path) if path in unknown), None)
            if above is not None:
                if unknown[above] and wanted(entry.path) and not wanted(above):
                    left.append(Missing(entry.path, unknown[above]))
            elif wanted(entry.path) or entry.path.rpartition("/")[2].startswith(TEMPORARY):
                yield Change(entry.path, a, b)


def _without_guarded(changes: Iterable[Change], left: list[Missing]) -> Iterator[Change]:
    """What a read-only mount may keep from a living sandbox is not replaced: the mount would end with it."""
    for change in changes:
        where, _, name = change.path.rpartition("/")
        inside = name in _GUARDED and (where == ".git" or where.endswith("/.git"))
        pointer = name == ".git" and change.before is not None and change.before.kind == FILE
        if change.before is None or not (inside or pointer):
            yield change
        elif change.before.size != len(HERE) or name != "commondir":  # ours, for as long as the run lasts
            left.append(Missing(change.path, "it is kept from a run that goes on; stop the run first"))


def _ancestors(path: str) -> Iterator[str]:
    names = path.split("/")
    return ("/".join(names[:count]) for count in range(1, len(names)))


def _check(store: Store, changes: list[Change]) -> None:
    """Nothing is touched when something that is needed is missing."""
    for change in changes:
        after = change.after
        if after is not None and after.kind == FILE and after.data not in store.objects:
            raise SnapshotError(f"the content of {after.path} is missing from the store")


def _cut_off(error: OSError) -> SnapshotError:
    return SnapshotError(
        f"the restore was cut off: {error.strerror}",
        hint="what is there is in the safety snapshot; `moat snapshot restore --continue` completes it",
    )


class _Work:
    """Applies changes: first what goes, the deepest first, then what comes, then the directories' own."""

    def __init__(
        self,
        objects: Objects,
        places: Places,
        left: list[Missing],
        wanted: Callable[[str], bool],
        told: Told,
    ) -> None:
        self.changed = 0
        self.removed = 0
        self.left = left
        self._objects = objects
        self._places = places
        self._wanted = wanted
        self._told = told
        self._total = 0
        self._done = 0
        self._modes: dict[str, tuple[int, int]] = {}  # directory -> (mode, mtime) that it had before us
        self._touched: set[str] = set()  # directories whose mtime we changed
        self._temporary = TEMPORARY + os.urandom(6).hex()

    def run(self, changes: list[Change], directories: Callable[[], Iterator[Entry]]) -> None:
        """`directories`: those of the target tree, for the times of the ones that something changed in."""
        self._total = len(changes)
        for change in reversed(changes):
            if change.before is not None and (change.after is None or _must_go(change)):
                self._attempt(change, self._remove)
        self._places.forget()
        for change in changes:
            if change.after is not None:
                self._attempt(change, self._make)
        last = {c.path: c.after for c in changes if c.after is not None and c.after.kind == DIRECTORY}
        last |= {entry.path: entry for entry in directories() if entry.path in self._touched}
        self._finish(last)

    def _attempt(self, change: Change, act: Callable[[Change], None]) -> None:
        """One path that cannot be done is told; a disk that is full ends it all."""
        try:
            act(change)
        except OSError as error:
            if error.errno not in _OF_ONE:
                raise
            self._leave(change.path, (error.strerror or "failed").lower())
        self._done += 1
        if self._done % 64 == 0:
            self._told(self._done, self._total)

    def _leave(self, path: str, why: str) -> None:
        self.left.append(Missing(path, why))

    # --- what goes -------------------------------------------------------------------------------

    def _remove(self, change: Change) -> None:
        assert change.before is not None
        parent, name = self._writable(change.path)
        if change.before.kind == DIRECTORY:
            try:
                os.rmdir(name, dir_fd=parent)
            except OSError:
                self._leave(change.path, "it holds what is not in the snapshots")
                return
            self._modes.pop(change.path, None)
        elif self._is_still(parent, name, change.before):
            os.unlink(name, dir_fd=parent)
        else:
            self._leave(change.path, "it changed meanwhile")
            return
        if change.after is None:
            self.removed += 1

    def _is_still(self, parent: int, name: str, entry: Entry) -> bool:
        """Whether what is there is what the safety snapshot holds."""
        info = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if entry.kind == LINK:
            return stat.S_ISLNK(info.st_mode) and os.readlink(name, dir_fd=parent) == entry.data
        return stat.S_ISREG(info.st_mode) and (info.st_size, info.st_mtime_ns) == (entry.size, entry.mtime)

    # --- what comes ------------------------------------------------------------------------------

    def _make(self, change: Change) -> None:
        entry = change.after
        assert entry is not None
        if entry.kind == DIRECTORY:
            self._directory(change)
            self.changed += change.before is None
            return
        parent, name = self._writable(entry.path)
        present = _kind(parent, name)
        if present is not None:
            if change.before is None or change.before.kind == DIRECTORY:
                self._leave(entry.path, "something that is not in the snapshots is in its place")
                return
            if not self._is_still(parent, name, change.before):
                self._leave(entry.path, "it changed meanwhile")
                return
        try:
            self._write(parent, name, entry)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary, dir_fd=parent)
        self.changed += 1

    def _directory(self, change: Change) -> None:
        parent, name = self._places.parent(change.path)
        if _kind(parent, name) is None:
            parent, name = self._writable(change.path)
            os.mkdir(name, 0o700, dir_fd=parent)
        self._places.open(change.path)  # raises when something else is in its place

    def _write(self, parent: int, name: str, entry: Entry) -> None:
        temporary = self._temporary
        if entry.twin and self._wanted(entry.twin) and not any(entry.twin == item.path for item in self.left):
            first, first_name = os.path.split(entry.twin)
            # Opened apart: the parent's descriptor must stay open.
            with Places(self._places._root) as others:
                source = others.open(first)
                info = os.stat(first_name, dir_fd=source, follow_symlinks=False)
                same = _kind(parent, name) == stat.S_IFREG and os.path.samestat(
                    info, os.stat(name, dir_fd=parent, follow_symlinks=False)
                )
                if same:
                    return
                os.link(first_name, temporary, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        elif entry.kind == LINK:
            os.symlink(entry.data, temporary, dir_fd=parent)
            _own(entry, lambda uid, gid: os.chown(temporary, uid, gid, dir_fd=parent, follow_symlinks=False))
            os.utime(temporary, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)
        else:
            self._file(parent, entry)
        os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)

    def _file(self, parent: int, entry: Entry) -> None:
        out = os.open(self._temporary, _NEW, 0o600, dir_fd=parent)
        try:
            self._objects.copy(entry.data, out, entry.size, entry.segments)
            _own(entry, lambda uid, gid: os.fchown(out, uid, gid))
            os.fchmod(out, entry.mode)
            self._dress(out, entry)
            os.utime(out, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(out)

    def _dress(self, fd: int, entry: Entry) -> None:
        """Its extended attributes. A file system that cannot have them gets the rest, and it is told."""
        try:
            attributes.write(fd, entry.attributes)
        except OSError as error:
            self._leave(
                entry.path, f"without its extended attributes: {(error.strerror or 'failed').lower()}"
            )

    # --- directories -----------------------------------------------------------------------------

    def _writable(self, path: str) -> tuple[int, str]:
        """`Places.parent`, in a directory that we may change; its mode and time are set right at the end."""
        where, _, name = path.rpartition("/")
        parent = self._places.open(where)
        if where not in self._touched:
            self._touched.add(where)
            info = os.fstat(parent)
            self._modes.setdefault(where, (stat.S_IMODE(info.st_mode), info.st_mtime_ns))
            if info.st_mode & 0o300 != 0o300 and os.geteuid() == info.st_uid:
                os.fchmod(parent, stat.S_IMODE(info.st_mode) | 0o700)
        return parent, name

    def _finish(self, last: dict[str, Entry]) -> None:
        """The deepest first: setting a directory's time must be the last thing that happens in it."""
        for path in sorted({*last, *self._modes}, reverse=True):
            entry = last.get(path)
            try:
                fd = self._places.open(path)
            except OSError:
                continue
            with contextlib.suppress(PermissionError):
                if entry is not None:
                    _own(entry, partial(os.fchown, fd))
                    os.fchmod(fd, entry.mode)
                    self._dress(fd, entry)
                    os.utime(fd, ns=(entry.mtime, entry.mtime))
                else:
                    os.fchmod(fd, self._modes[path][0])


def _must_go(change: Change) -> bool:
    """Whether what is there is in the way of what comes; files and links are replaced by rename."""
    assert change.before is not None
    assert change.after is not None
    return (change.before.kind == DIRECTORY) != (change.after.kind == DIRECTORY)


def _kind(parent: int, name: str) -> int | None:
    try:
        return stat.S_IFMT(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return None


def _own(entry: Entry, change: Callable[[int, int], None]) -> None:
    """Only root can give files away; everybody else's are their own."""
    with contextlib.suppress(PermissionError):
        change(entry.uid, entry.gid)
