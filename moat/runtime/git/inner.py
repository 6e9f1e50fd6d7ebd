"""Repositories inside of a workspace that git above them obeys: whether a run may have made or changed one.

Git starts what the configuration of such a repository says at a mere `git status` above it, once the index
names it (a *gitlink*), or when it is a submodule. Looking at every file each second would cost too much: this
looks at the index and at the submodules' own directories, and says when a real look is due.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from moat.runtime.git.layout import Repository
from moat.runtime.git.obeyed import submodules

_GITLINK = b"\0\0\xe0\0"  # the mode 160000 as an index has it; elsewhere in it by chance
_LARGEST = 256 << 20  # bytes of an index
_PIECE = 1 << 20  # bytes that are in memory at one time: a sandbox makes an index as large as it likes
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_Stamp = tuple[int, int, int]


class Inner:
    """What was seen of one repository at the last call. Blocks: for a large index some milliseconds."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._index: _Stamp | None = None
        self._most = 0  # gitlinks that the index had at once, at most
        self._modules: dict[str, _Stamp | None] = {}
        self.changed()

    def changed(self) -> bool:
        """Whether since the last call an inner repository was added, or a submodule's settings changed."""
        return self._added() | self._touched()

    def _added(self) -> bool:
        path = self._repository.own / "index"
        stamp = _stamp(path)
        if stamp == self._index:
            return False
        self._index = stamp
        before, self._most = self._most, max(self._most, _gitlinks(path))
        return self._most > before

    def _touched(self) -> bool:
        before = self._modules
        self._modules = {
            str(path): _stamp(path)
            for module in submodules(self._repository.own)
            for path in (module / "config", module / "hooks")
        }
        return self._modules != before


def _stamp(path: Path) -> _Stamp | None:
    try:
        info = os.lstat(path)
    except OSError:
        return None
    return info.st_ino, info.st_size, info.st_ctime_ns


def _gitlinks(path: Path) -> int:
    """How many there are, at least."""
    try:
        fd = os.open(path, _READ)
        with os.fdopen(fd, "rb") as file:
            return _count(file)
    except OSError:
        return 0


def _count(file: BinaryIO) -> int:
    found, rest, left = 0, b"", _LARGEST
    while left > 0 and (piece := file.read(min(_PIECE, left))):
        left -= len(piece)
        piece = rest + piece
        found += piece.count(_GITLINK)
        rest = piece[1 - len(_GITLINK) :]
    return found
