"""Every thing in a directory tree, met in a fixed order, without ever leaving the tree.

The tree may belong to somebody who means harm and changes it while it is walked. Directories are opened
relative to their open parent and never through a symbolic link; depth, number and file systems are bounded.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from time import monotonic
from typing import NamedTuple

from moat.dataclass import dataclass
from moat.runtime.snapshots.errors import TOO_MANY_HINT, SnapshotError
from moat.runtime.snapshots.ignore import Rules

MAX_ENTRIES = 1_000_000
MAX_MATCHING = 60.0  # seconds for .gitignore files; a large tree needs a few
MAX_DEPTH = 200  # directories inside each other; a file descriptor is held for each

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WAY = _DIRECTORY | getattr(os, "O_PATH", 0)  # a directory above need not be one that can be listed


class Found(NamedTuple):
    path: str
    name: str
    parent: int  # open directory; valid until the next one is asked for
    info: os.stat_result
    problem: str = ""  # a directory that is not entered: why


@dataclass(slots=True)
class _Level:
    fd: int
    prefix: str  # "" or "a/b/"
    entries: Iterator[os.DirEntry[str]]
    names: list[str]
    rules: Rules


class _Matching:
    """What obeying .gitignore files takes: they are the agent's."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def took(self, began: float) -> None:
        self._seconds += monotonic() - began
        if self._seconds > MAX_MATCHING:
            raise SnapshotError(
                "the .gitignore files of the workspace take too long to obey",
                hint="`snapshots: {exclude: {ignore_gitignore: true}}` in agent.yaml keeps what they name",
            )


def open_root(path: os.PathLike[str] | str) -> int:
    """A descriptor of the directory `path`, which is absolute and has no links. Raises SnapshotError.

    None on the way is followed: the directories above a workspace can be in another run's workspace.
    """
    fd = os.open("/", _DIRECTORY)
    try:
        for name in filter(None, os.fspath(path).split("/")):
            inner = os.open(name, _WAY, dir_fd=fd)
            os.close(fd)
            fd = inner
        return os.open(".", _DIRECTORY, dir_fd=fd)
    except OSError as error:
        raise SnapshotError(f"cannot read {os.fspath(path)}: {error.strerror}") from None
    finally:
        os.close(fd)


def walk(root: int, rules: Rules, check: Callable[[int], None]) -> Iterator[Found]:
    """Everything below the open directory `root`, a directory before what is in it.

    `check` is called now and then with the number of entries so far; it may raise.
    Raises SnapshotError when there are more than MAX_ENTRIES.
    """
    device = os.fstat(root).st_dev
    budget = MAX_ENTRIES
    count, matching = 0, _Matching()
    stack: list[_Level] = []
    try:
        stack.append(_level(os.dup(root), "", [], rules, budget=budget, matching=matching))
        while stack:
            level = stack[-1]
            entry = next(level.entries, None)
            if entry is None:
                os.close(stack.pop().fd)
                continue
            count += 1
            if count % 256 == 0:
                check(count)
            if count > budget:
                raise _too_many()
            try:
                info = entry.stat(follow_symlinks=False)
            except OSError:  # gone since the directory was listed
                continue
            directory = stat.S_ISDIR(info.st_mode)
            if not level.rules.empty:
                began = monotonic()
                skipped = level.rules.skip([*level.names, entry.name], directory=directory)
                matching.took(began)
                if skipped:
                    continue
            path = level.prefix + entry.name
            if not directory:
                yield Found(path, entry.name, level.fd, info)
                continue
            found, below = _enter(
                level, entry.name, matching=matching, device=device, depth=len(stack), budget=budget - count
            )
            if found is not None:
                try:
                    yield found
                finally:
                    if below is not None:
                        stack.append(below)
    finally:
        for level in stack:
            os.close(level.fd)


def _enter(
    level: _Level, name: str, *, matching: _Matching, device: int, depth: int, budget: int
) -> tuple[Found | None, _Level | None]:
    """Open a directory and list it. (None, None): it is gone."""
    path = level.prefix + name
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=level.fd)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
            return None, None  # removed, or swapped for something else, while we looked
        info = os.stat(name, dir_fd=level.fd, follow_symlinks=False)
        return Found(path, name, level.fd, info, _reason(error)), None
    info = os.fstat(fd)
    problem = ""
    if info.st_dev != device:
        problem = "another file system is mounted here"
    elif depth >= MAX_DEPTH:
        problem = f"more than {MAX_DEPTH} directories inside each other"
    if problem:
        os.close(fd)
        return Found(path, name, level.fd, info, problem), None
    found = Found(path, name, level.fd, info)
    try:
        inner = [*level.names, name]
        return found, _level(fd, path + "/", inner, level.rules, budget=budget, matching=matching)
    except OSError as error:
        os.close(fd)
        return found._replace(problem=_reason(error)), None


def _level(
    fd: int, prefix: str, names: list[str], rules: Rules, *, budget: int, matching: _Matching
) -> _Level:
    entries = []
    try:
        with os.scandir(fd) as listing:
            for entry in listing:
                entries.append(entry)
                if len(entries) > budget:
                    raise _too_many()
        began = monotonic()
        own = rules.enter(fd, names)
        matching.took(began)
    except SnapshotError:
        os.close(fd)
        raise
    entries.sort(key=lambda entry: entry.name)
    return _Level(fd, prefix, iter(entries), names, own)


def _reason(error: OSError) -> str:
    return (error.strerror or "cannot be read").lower()


def _too_many() -> SnapshotError:
    return SnapshotError(
        f"the workspace has more than {MAX_ENTRIES:,} files and directories",
        hint=TOO_MANY_HINT,
    )
