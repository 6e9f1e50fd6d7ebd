"""Where HEAD of a repository is, read from its files: git itself could be made to start programs.

The files are the agent's: each is read only when it is a plain file, and only its beginning.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

_MOST = 4096
_PACKED = 4 << 20  # bytes of packed-refs that are searched
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def head(workspace: Path) -> str:
    """The commit that HEAD of the repository at `workspace` names; empty: no repository, or no commit."""
    directory = workspace / ".git"
    link = _read(directory)
    if link.startswith("gitdir: "):  # a linked worktree, or a submodule
        directory = workspace / link.removeprefix("gitdir: ").strip()
    name = _read(directory / "HEAD").strip()
    if not name.startswith("ref: "):
        return name
    reference = name.removeprefix("ref: ").strip()
    if not reference.startswith("refs/") or ".." in reference.split("/"):
        return ""
    shared = _read(directory / "commondir").strip()
    common = directory / shared if shared else directory
    # With reftables the references are in files that change their names.
    return (
        _read(common / reference).strip()
        or _packed(common / "packed-refs", reference)
        or _read(common / "reftable" / "tables.list").strip()
    )


def _packed(path: Path, reference: str) -> str:
    for line in _read(path, _PACKED).splitlines():
        commit, _, name = line.partition(" ")
        if name == reference:
            return commit
    return ""


def _read(path: Path, most: int = _MOST) -> str:
    with contextlib.suppress(OSError):
        fd = os.open(path, _OPEN)
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return os.read(fd, most).decode("utf-8", "replace")
        finally:
            os.close(fd)
    return ""
