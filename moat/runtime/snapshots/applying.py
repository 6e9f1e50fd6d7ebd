"""Changes, applied to a tree: what goes, what comes, and the directories' own modes and times.

Every name is reached by descriptor (`places`), so that a link which somebody swaps in leads nowhere. A file
takes the place of another by rename, and only of one that is still what the safety snapshot holds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial

from moat.runtime.snapshots import attributes
from moat.runtime.snapshots.diff import Change
from moat.runtime.snapshots.entry import DIRECTORY, LINK, Entry
from moat.runtime.snapshots.objects import Objects
from moat.runtime.snapshots.places import Places
from moat.runtime.snapshots.store import Missing

TEMPORARY = ".moat-restore-"
Told = Callable[[int, int], None]  # (paths done, of how many)
# What is wrong with one path and no other.
_OF_ONE = frozenset(
    (
        *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EPERM, errno.EACCES),
        # A file system that cannot have it, unlike the first one.
        *(errno.EFBIG, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EMLINK, errno.EOPNOTSUPP),
    )
)
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Work:
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
