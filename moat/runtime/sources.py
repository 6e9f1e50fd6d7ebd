"""What is mounted, held by a descriptor from the moment that it is looked at.

Between a look and a mount, another run in the same workspace could put a link in the place of a directory.
So what a source is was settled when it was judged (`Mount.of`); from then on no link is followed on the way
to it, and what is mounted is what the descriptor holds. As long as it is held, no other file gets its number.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from moat.errors import StartError

_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_LINKS = (errno.ELOOP, errno.ENOTDIR)
_HINT = "check that the workspace and the mounts in agent.yaml exist"


def hold(path: Path) -> int:
    """A directory or a plain file as a descriptor, for mounting alone; the caller's to close.

    Raises StartError when it is something else, and when a component of `path` is a link.
    """
    try:
        fd = _walk(path)
    except OSError as error:
        if error.errno in _LINKS:
            raise StartError(f"cannot mount {path}: it is a symbolic link, or lies below one") from None
        raise StartError(f"cannot mount {path}: {error.strerror}", hint=_HINT) from None
    mode = os.fstat(fd).st_mode
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        os.close(fd)
        raise StartError(f"cannot mount {path}: neither a directory nor a plain file")
    return fd


def _walk(path: Path) -> int:
    """Component by component: O_NOFOLLOW speaks of the last one only."""
    names = path.parts[1:]
    if not path.is_absolute() or ".." in names:
        raise OSError(errno.EINVAL, "not an absolute path without `..`")
    place = os.open("/", _FLAGS)
    for name in names:
        above = place
        try:
            place = os.open(name, _FLAGS, dir_fd=above)
        finally:
            os.close(above)
        if stat.S_ISLNK(os.fstat(place).st_mode):
            os.close(place)
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return place
