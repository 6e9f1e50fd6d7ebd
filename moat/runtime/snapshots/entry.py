"""One thing in a tree, and its line in a tree file."""

from __future__ import annotations

import json
import os
import stat
import sys
from typing import NamedTuple

from moat.runtime.snapshots.attributes import Attributes

FILE, DIRECTORY, LINK, OTHER = "f", "d", "l", "-"
Segments = list[tuple[int, int]]  # (offset, length) of what a sparse file really holds, ascending

_encode = json.JSONEncoder(separators=(",", ":")).encode
_scan = json.JSONDecoder().raw_decode  # a line has no white space around it
_FOREIGN = sys.getfilesystemencoding().lower().replace("-", "") != "utf8"


class Entry(NamedTuple):
    """`path` is relative to the workspace, with the surrogates of `os.fsdecode` for what is no UTF-8."""

    path: str
    kind: str
    mode: int  # permission bits
    mtime: int  # nanoseconds
    uid: int
    gid: int
    size: int = 0  # of a file
    data: str = ""  # file: name of its object; link: where it leads; other: why it is not kept
    twin: str = ""  # file: the path of the first entry that is the same file (hard link)
    segments: Segments | None = None  # sparse file: the object is these, one after the other
    attributes: Attributes | None = None  # of a file or directory

    @property
    def kept(self) -> bool:
        return self.kind != OTHER


class Stamp(NamedTuple):
    """What tells that a file has not changed since it was read. All fields 0: do not believe it."""

    device: int = 0
    inode: int = 0
    ctime: int = 0  # nanoseconds; nothing in a sandbox can set it


def order(path: str) -> str:
    """Sorts paths as a walk meets them: a directory, what is in it, then its next sibling."""
    return path.replace("/", "\0")


def stamp_of(info: os.stat_result) -> Stamp:
    return Stamp(info.st_dev, info.st_ino, info.st_ctime_ns)


def permissions(info: os.stat_result) -> int:
    return stat.S_IMODE(info.st_mode)


def pack(entry: Entry) -> bytes:
    """The line of a tree, without its end."""
    return _encode(_stored(entry) if _FOREIGN else entry).encode("ascii")


def unpack(line: bytes) -> Entry:
    """The entry of a line. Raises ValueError or TypeError for what is none."""
    entry = Entry(*_scan(line.decode("ascii"))[0])
    return _local(entry) if _FOREIGN else entry


def _stored(entry: Entry) -> Entry:
    """Names on disk are UTF-8 whatever the locale of the process that wrote them."""

    def word(text: str) -> str:
        return os.fsencode(text).decode("utf-8", "surrogateescape")

    return entry._replace(path=word(entry.path), data=word(entry.data), twin=word(entry.twin))


def _local(entry: Entry) -> Entry:
    def word(text: str) -> str:
        return os.fsdecode(text.encode("utf-8", "surrogateescape"))

    return entry._replace(path=word(entry.path), data=word(entry.data), twin=word(entry.twin))
