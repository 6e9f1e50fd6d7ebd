"""Where the git directories of a workspace are, found without asking git: it would obey them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from moat.dataclass import dataclass

DOT_GIT = ".git"
_POINTER_SIZE = 8192  # bytes; a path and a word


@dataclass(frozen=True, slots=True)
class Repository:
    """The git directories behind one working tree."""

    tree: Path  # absolute, without symlinks; `.git` lies in it
    own: Path  # of this working tree: HEAD, index
    common: Path  # of the repository: objects, refs, config, hooks

    @property
    def linked(self) -> bool:
        """A worktree of a repository that lies elsewhere."""
        return self.own != self.common


def find(tree: Path) -> Repository | None:
    """The repository whose working tree begins at `tree`; None when there is none that can be shown.

    A `.git` file can lead anywhere, and whoever wrote the workspace wrote it. It is followed only to a
    worktree that points back: nobody but the owner of that repository can have put this there.
    """
    tree = Path(os.path.realpath(tree))
    dot = tree / DOT_GIT
    try:
        mode = os.lstat(dot).st_mode
    except OSError:
        return None
    if stat.S_ISDIR(mode):
        return Repository(tree, dot, dot) if (dot / "HEAD").exists() else None
    if not stat.S_ISREG(mode):
        return None
    own = pointer(dot, prefix="gitdir: ")
    if own is None or own.parent.name != "worktrees":
        return None
    common = own.parent.parent
    back, shared = pointer(own / "gitdir"), pointer(own / "commondir")
    if back is None or Path(os.path.realpath(back)) != dot or shared != common:
        return None
    return Repository(tree, own, common)


def pointer(file: Path, *, prefix: str = "") -> Path | None:
    """The path that `file` holds, absolute and without symlinks; relative ones start at its directory."""
    line = content(file)
    if line is None or not line.startswith(prefix) or len(line) == len(prefix):
        return None
    return Path(os.path.realpath(file.parent / line.removeprefix(prefix)))


def content(file: Path) -> str | None:
    """The text of a small file without its line end; None when there is none. A pipe does not hold us up."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as opened:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            return os.fsdecode(opened.read(_POINTER_SIZE)).rstrip("\n")
    except OSError:
        return None
