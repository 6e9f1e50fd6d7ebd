"""Where HEAD of a repository is, read from its files: git itself could be made to start programs.

The files are the agent's: no link is followed, and each is read only when it is a plain file, and only its
beginning.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from moat.runtime.git.layout import find
from moat.runtime.snapshots.errors import SnapshotError
from moat.runtime.snapshots.places import Places
from moat.runtime.snapshots.walk import open_root

_MOST = 4096
_PACKED = 4 << 20  # bytes of packed-refs that are searched
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def head(workspace: Path) -> str:
    """The commit that HEAD of the repository at `workspace` names; empty: no repository, or no commit."""
    repository = find(workspace)
    if repository is None:
        return ""
    name = _read(repository.own, "HEAD").strip()
    if not name.startswith("ref: "):
        return name
    reference = name.removeprefix("ref: ").strip()
    if not reference.startswith("refs/") or ".." in reference.split("/"):
        return ""
    # With reftables the references are in files that change their names.
    return (
        _read(repository.common, reference).strip()
        or _packed(repository.common, reference)
        or _read(repository.common, "reftable/tables.list").strip()
    )


def _packed(common: Path, reference: str) -> str:
    for line in _read(common, "packed-refs", _PACKED).splitlines():
        commit, _, name = line.partition(" ")
        if name == reference:
            return commit
    return ""


def _read(directory: Path, path: str, most: int = _MOST) -> str:
    with contextlib.suppress(OSError, SnapshotError, ValueError):
        root = open_root(directory)
        try:
            with Places(root) as places:
                parent, name = places.parent(path)
                fd = os.open(name, _OPEN, dir_fd=parent)
                with os.fdopen(fd, "rb") as file:
                    if stat.S_ISREG(os.fstat(fd).st_mode):
                        return file.read(most).decode("utf-8", "replace")
        finally:
            os.close(root)
    return ""
