"""Reading one configuration file with suspicion: it may come from a cloned repository."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from moat.config.check import Checker, Node, kind_of

MAX_BYTES = 64 * 1024  # a long agent.yaml has 4 KB; the parser needs a second for 64


def read_document(path: Path, checker: Checker) -> Node | None:
    """The root node of `path`, or None when there is nothing in it or something wrong with it."""
    try:
        data = _read(path)
    except OSError as error:
        checker.problem(1, 1, error.strerror or str(error))
        return None
    if len(data) > MAX_BYTES:
        checker.problem(1, 1, f"larger than {MAX_BYTES // 1024} KiB")
        return None
    text = _decode(data, checker)
    if text is None:
        return None
    # ruamel.yaml costs 50 ms: only who has a file pays for it.
    from moat.config.compose import MalformedError, compose

    try:
        root = compose(text)
        return None if root is None or kind_of(root) == "null" else root
    except MalformedError as error:
        checker.problem(error.line, error.column, error.text)
        return None


def trusted(path: Path, checker: Checker) -> bool:
    """Whether only its owner, the user or root, can write `path`; notes it when others can.

    For files that say where credentials go: who can write them can send a credential anywhere.
    """
    info = os.stat(path)
    if info.st_uid not in {0, os.getuid()}:
        checker.problem(1, 1, "the file belongs to another user")
    elif info.st_mode & 0o022 and not _out_of_reach(path):
        checker.problem(1, 1, f"others can write the file; run `chmod 600 {path}`")
    else:
        return True
    return False


def _out_of_reach(path: Path) -> bool:
    """Whether a directory above `path` lets only the user in: what a umask of 002 gives is harmless then."""
    above = map(os.stat, Path(os.path.realpath(path)).parents)
    return any(info.st_uid == os.geteuid() and not info.st_mode & 0o011 for info in above)


def _read(path: Path) -> bytes:
    # O_NONBLOCK: a FIFO of that name must not hang us.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(None, "not a regular file")
        return os.read(fd, MAX_BYTES + 1)
    finally:
        os.close(fd)


def _decode(data: bytes, checker: Checker) -> str | None:
    try:
        return data.decode("utf-8-sig")  # a BOM is what some editors write
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line_start = before.rfind(b"\n") + 1
        column = len(before[line_start:].decode("utf-8", "replace")) + 1
        utf16 = data[:2] in {b"\xff\xfe", b"\xfe\xff"}
        what = "this is UTF-16; save it as UTF-8" if utf16 else f"byte 0x{data[error.start]:02x} is not UTF-8"
        checker.problem(before.count(b"\n") + 1, column, what)
        return None
