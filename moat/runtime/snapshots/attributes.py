"""Extended attributes and access lists of a file or directory: the user's own, never the system's.

`user.*` and POSIX access lists. `security.*` and `trusted.*` are neither read nor written: they give rights
(file capabilities), and a snapshot must give none.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import os

Attributes = dict[str, str]  # name -> base64
LARGEST = 64 << 10  # bytes of one thing's names and values
_LISTS = frozenset({"system.posix_acl_access", "system.posix_acl_default"})
_ABSENT = {errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.ENOENT, errno.ELOOP, errno.ENODATA}
_supported = hasattr(os, "listxattr")  # Linux


class TooLargeError(Exception):
    """They have more than LARGEST bytes."""


def read(target: int | str) -> Attributes | None:
    """Of an open file, or of a path that is not followed; None: there are none. Raises TooLargeError."""
    if not _supported:
        return None
    follow = isinstance(target, int)
    found: Attributes = {}
    try:
        for name in sorted(filter(_ours, os.listxattr(target, follow_symlinks=follow))):
            value = os.getxattr(target, name, follow_symlinks=follow)
            found[name] = base64.b64encode(value).decode()
    except OSError as error:
        if error.errno in {errno.E2BIG, errno.ERANGE}:
            raise TooLargeError from None
        if error.errno not in _ABSENT:
            raise
    if sum(len(name) + len(value) for name, value in found.items()) > LARGEST:
        raise TooLargeError
    return found or None


def write(fd: int, wanted: Attributes | None) -> None:
    """Give an open file or directory exactly these. Raises OSError where the file system cannot."""
    if not _supported:
        return
    try:
        present = read(fd) or {}
    except TooLargeError:
        present = {}
    for name in present.keys() - (wanted or {}).keys():
        with contextlib.suppress(OSError):
            os.removexattr(fd, name)
    for name, value in (wanted or {}).items():
        if _ours(name) and present.get(name) != value:
            os.setxattr(fd, name, base64.b64decode(value))


def _ours(name: str) -> bool:
    return name.startswith("user.") or name in _LISTS
