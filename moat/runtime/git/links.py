"""Symbolic links in git directories, through which git on the host would write.

Git follows them: the next commit appends to what `logs/HEAD` leads to, overwrites what `COMMIT_EDITMSG` leads
to, and packing references makes what `packed-refs` leads to, each with text that the sandbox can choose. Git
itself puts no links there. No mount can keep a sandbox from making them where it must be able to write, so
those that were not there before a run are removed.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from moat.runtime.snapshots.errors import SnapshotError
from moat.runtime.snapshots.ignore import Rules
from moat.runtime.snapshots.walk import Found, open_root, walk

# Git replaces no object, and writes no hook. No pattern here may match below `refs` or `logs`: a branch can
# have any name.
_SKIPPED = Rules.of(("/objects/??/", "/hooks/"), gitignore=False)


def found(place: Path) -> dict[Path, str]:
    """Every link in the git directory `place`, and where it leads; none when it is no directory."""
    return {place / item.path: _target(item) for item in _links(place)}


def cut(place: Path, known: Callable[[Path, str], bool]) -> dict[Path, str]:
    """Remove the links that are not `known`, and nothing else; returns them."""
    gone = {}
    for item in _links(place):
        path, target = place / item.path, _target(item)
        if not known(path, target):
            with contextlib.suppress(OSError):
                os.unlink(item.name, dir_fd=item.parent)
                gone[path] = target
    return gone


def _links(place: Path) -> Iterator[Found]:
    try:
        root = open_root(place)
    except SnapshotError:
        return
    try:
        with contextlib.suppress(SnapshotError):  # more than a million: the rest is not looked at
            for item in walk(root, _SKIPPED, lambda _count: None):
                if stat.S_ISLNK(item.info.st_mode):
                    yield item
    finally:
        os.close(root)


def _target(item: Found) -> str:
    try:
        return os.readlink(item.name, dir_fd=item.parent)
    except OSError:
        return ""
