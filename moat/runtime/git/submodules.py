"""Submodules of a worktree, so that git finds them from both sides of the fence.

Git writes relative paths between a submodule and its git directory. In the sandbox the worktree is at
/workspace too, so a path that was written on one side leads nowhere on the other. Absolute ones of the host
hold on both, because a sandbox sees the worktree and its repository at these as well.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from moat.regex import regex
from moat.runtime.git.command import configured
from moat.runtime.git.layout import DOT_GIT, Repository
from moat.runtime.sandbox import WORKSPACE

_SKIPPED = {"objects", "refs", "logs", "hooks", "info"}
_POINTER = regex(rb"gitdir: [^\0\n]+\n?")


def settle(repository: Repository) -> None:
    """Make the pointers of every submodule of a worktree absolute. Nothing is done for other repositories."""
    if not repository.linked:
        return
    top = repository.own / "modules"
    for directory, below, files in os.walk(top):
        below[:] = [name for name in below if name not in _SKIPPED]
        if "HEAD" in files and _private(Path(directory, "config")):
            _settle(Path(directory), repository.tree)


def _private(config: Path) -> bool:
    """A file of its own: git would write through a link that the sandbox made."""
    try:
        info = os.lstat(config)
    except OSError:
        return False
    return stat.S_ISREG(info.st_mode) and info.st_nlink == 1


def _settle(module: Path, tree: Path) -> None:
    told = configured(module / "config", "core.worktree")
    if told is None:
        return
    place = Path(os.path.normpath(module / told.rstrip("\n")))
    for root in (Path(WORKSPACE), tree):
        if place.is_relative_to(root) and place != root:
            target = tree / place.relative_to(root)
            if _point(tree, place.relative_to(root), module):
                configured(module / "config", "core.worktree", str(target))
            return


def _point(tree: Path, path: Path, module: Path) -> bool:
    """Write `<path>/.git`. The sandbox may have made any of it a link: none is followed."""
    directory = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in path.parts:
            inner = os.open(
                part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory
            )
            os.close(directory)
            directory = inner
        fd = os.open(DOT_GIT, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        with os.fdopen(fd, "r+b") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode) or not _POINTER.fullmatch(file.read(8192)):
                return False
            file.seek(0)
            file.write(b"gitdir: " + os.fsencode(module) + b"\n")
            file.truncate()
        return True
    except OSError:
        return False
    finally:
        os.close(directory)
