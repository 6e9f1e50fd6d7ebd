"""The contents of files, each kept once under its SHA-256.

Small ones lie one after the other in packs, a pack for each snapshot that brought something new: one file
to write and to sync instead of thousands. Bigger ones are files of their own, so that a file system with
reflinks need not copy them.

    packs/<id>.pack   contents        packs/<id>.idx   where each one is; a pack without it does not exist
    large/<sha256>    one content

Everything appears by rename after it was synced. Names that begin with `tmp-` are of a process that died.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from moat.paths import private_dir, write_private
from moat.runtime.snapshots.entry import Segments
from moat.runtime.snapshots.errors import SnapshotError, disk_error, no_space

SMALL = 1 << 20  # bytes; a bigger object is a file of its own
_PIECE = 1 << 20
_FICLONE = 0x40049409
_RECORD = struct.Struct(">32sQI")  # sha256, offset, length
_FLOOR = 1 << 30  # bytes that a snapshot leaves free, or a fiftieth of a small disk
_LOOK = 64 << 20  # bytes written between two looks at what is free
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class Objects:
    """The objects of one store."""

    def __init__(self, root: Path) -> None:
        self.packs = root / "packs"
        self.large = root / "large"
        self._index: dict[str, tuple[str, int, int]] | None = None
        self._files: set[str] = set()

    def _load(self) -> dict[str, tuple[str, int, int]]:
        if self._index is None:
            self._index = {}
            with contextlib.suppress(FileNotFoundError):
                self._files = set(os.listdir(self.large))
            for name in self.pack_names():
                for key, offset, length in self.read_index(name):
                    self._index[key] = (name, offset, length)
        return self._index

    def pack_names(self) -> list[str]:
        try:
            return sorted(name[:-4] for name in os.listdir(self.packs) if name.endswith(".idx"))
        except FileNotFoundError:
            return []

    def read_index(self, name: str) -> Iterator[tuple[str, int, int]]:
        data = (self.packs / f"{name}.idx").read_bytes()
        whole = len(data) - len(data) % _RECORD.size
        for key, offset, length in _RECORD.iter_unpack(data[:whole]):
            yield key.hex(), offset, length

    def forget_index(self) -> None:
        """Somebody else may have changed the store."""
        self._index = None

    def __contains__(self, key: str) -> bool:
        return key in (self._index or self._load()) or key in self._files

    def note(self, key: str, place: tuple[str, int, int] | None) -> None:
        if place is None:
            self._files.add(key)
        else:
            self._load()[key] = place

    def open(self, key: str) -> tuple[int, int, int]:
        """(descriptor, offset, length) of an object. Raises SnapshotError when it is missing."""
        place = self._load().get(key)
        path = self.large / key if place is None else self.packs / f"{place[0]}.pack"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SnapshotError(f"object {key[:12]} cannot be read: {error.strerror}") from None
        return (fd, 0, os.fstat(fd).st_size) if place is None else (fd, place[1], place[2])

    def pieces(self, key: str) -> Iterator[bytes]:
        """The content in pieces. Raises SnapshotError at its end when it is not what was put in."""
        fd, offset, left = self.open(key)
        digest = hashlib.sha256()
        try:
            while left and (data := os.pread(fd, min(left, _PIECE), offset)):
                digest.update(data)
                offset, left = offset + len(data), left - len(data)
                yield data
        finally:
            os.close(fd)
        if digest.hexdigest() != key:
            raise SnapshotError(f"object {key[:12]} is damaged: its content does not match its name")

    def copy(self, key: str, out: int, size: int, segments: Segments | None) -> None:
        """Make the empty open file `out` the content `key`. Raises SnapshotError and OSError."""
        if segments is None:
            if key in self._files and self._cloned(key, out):
                return
            for data in self.pieces(key):
                _write(out, data)
            return
        os.ftruncate(out, size)
        places = iter(segments)
        start, room = 0, 0
        for data in self.pieces(key):
            view = memoryview(data)
            while view:
                if not room:
                    start, room = next(places)
                done = os.pwrite(out, view[:room], start)
                start, room, view = start + done, room - done, view[done:]

    def _cloned(self, key: str, out: int) -> bool:
        fd, _, _ = self.open(key)
        try:
            if not clone(fd, out):
                return False
        finally:
            os.close(fd)
        if _hash_of(out) != key:
            raise SnapshotError(f"object {key[:12]} is damaged: its content does not match its name")
        return True

    def sweep(self) -> None:
        """Remove what a process that died left behind. Only under the store's lock."""
        for directory in (self.packs, self.large):
            with contextlib.suppress(FileNotFoundError):
                names = set(os.listdir(directory))
                for name in names:
                    orphan = name.endswith(".pack") and f"{name[:-5]}.idx" not in names
                    if orphan or name.startswith(("tmp-", ".")):
                        os.unlink(directory / name)


class Writer:
    """Adds objects to a store. Nothing of it exists before `publish`, or the end of an `add_stream`.

    Use as a context: leaving it without `publish` removes what was written.
    """

    def __init__(self, objects: Objects) -> None:
        self.added = 0  # bytes
        self._objects = objects
        self._name = os.urandom(8).hex()
        self._pack: int | None = None
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._offset = 0
        self._index: dict[str, tuple[int, int]] = {}
        self._unlooked = _LOOK

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pack is not None:
            os.close(self._pack)
            self._pack = None
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)

    @property
    def _temporary(self) -> Path:
        return self._objects.packs / f"tmp-{self._name}"

    def add(self, data: bytes) -> str:
        """Keep a small content; returns its name."""
        key = hashlib.sha256(data).hexdigest()
        if key in self._index or key in self._objects:
            return key
        self._account(len(data))
        self._index[key] = (self._offset, len(data))
        self._offset += len(data)
        self._pending.append(data)
        self._pending_size += len(data)
        if self._pending_size >= _PIECE:
            self._flush()
        return key

    def add_stream(self, source: int, segments: Segments, *, dense: bool) -> str:
        """Keep the `segments` of an open file as one object; `dense`: they are all of it."""
        private_dir(self._objects.large)
        path = self._objects.large / f"tmp-{os.urandom(8).hex()}"
        out = os.open(path, _NEW, 0o600)
        try:
            if dense and clone(source, out):
                os.ftruncate(out, sum(length for _, length in segments))  # it may have grown
                key = _hash_of(out)
            else:
                key = self._copy(source, out, segments)
            if key in self._objects:
                return key
            os.fsync(out)
            os.rename(path, self._objects.large / key)
            self._objects.note(key, None)
            self.added += os.fstat(out).st_size
            return key
        finally:
            os.close(out)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _copy(self, source: int, out: int, segments: Segments) -> str:
        digest = hashlib.sha256()
        for data in read_segments(source, segments):
            digest.update(data)
            self._account(len(data))
            try:
                _write(out, data)
            except OSError as error:
                raise disk_error(error, self._objects.large.parent) from None
        return digest.hexdigest()

    def _account(self, size: int) -> None:
        """A snapshot never takes the last of the disk."""
        self._unlooked += size
        if self._unlooked >= _LOOK:
            place = self._objects.packs.parent
            disk = os.statvfs(place)
            free, all_of_it = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
            if free - self._pending_size - size < min(_FLOOR, all_of_it // 50):
                raise no_space(place)
            self._unlooked = 0

    def _flush(self) -> None:
        try:
            if self._pack is None:
                private_dir(self._objects.packs)
                self._pack = os.open(self._temporary, _NEW, 0o600)
            _write(self._pack, b"".join(self._pending))
        except OSError as error:
            raise disk_error(error, self._objects.packs.parent) from None
        self._pending.clear()
        self._pending_size = 0

    def publish(self) -> None:
        """Make the pack part of the store; a crash before the end of this leaves the store as it was."""
        if not self._index:
            return
        self._flush()
        assert self._pack is not None
        packs = self._objects.packs
        try:
            os.fsync(self._pack)
            os.rename(self._temporary, packs / f"{self._name}.pack")
            lines = [_RECORD.pack(bytes.fromhex(key), *place) for key, place in self._index.items()]
            write_private(packs / f"{self._name}.idx", b"".join(lines))
        except OSError as error:
            raise disk_error(error, packs.parent) from None
        os.close(self._pack)
        self._pack = None
        self.added += self._offset
        for key, (offset, length) in self._index.items():
            self._objects.note(key, (self._name, offset, length))
        self._index = {}


class Hasher:
    """Names contents like a `Writer` and keeps none: to compare, nothing has to be copied."""

    def add(self, data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    def add_stream(self, source: int, segments: Segments, *, dense: bool) -> str:
        del dense
        digest = hashlib.sha256()
        for data in read_segments(source, segments):
            digest.update(data)
        return digest.hexdigest()


def discard(objects: Objects, live: Collection[str]) -> int:
    """Remove the objects that are not in `live`; returns the bytes that this freed.

    A pack that is mostly dead, and small packs when there are many, are written anew without the dead.
    Only under the store's lock.
    """
    freed = 0
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(objects.large):
            if name not in live:
                freed += os.stat(objects.large / name).st_size
                os.unlink(objects.large / name)
    stale = []
    names = objects.pack_names()
    for name in names:
        held = list(objects.read_index(name))
        alive = sum(length for key, _, length in held if key in live)
        total = sum(length for _, _, length in held)
        if (
            not any(key in live for key, _, _ in held)
            or alive * 2 < total
            or (len(names) > 64 and alive < SMALL)
        ):
            stale.append(name)
            freed += total - alive
    if stale:
        _rewrite(objects, stale, live)
    objects.forget_index()
    return freed


def _rewrite(objects: Objects, stale: list[str], live: Collection[str]) -> None:
    """The new pack is whole before the first old one goes: a crash leaves objects twice, never none."""
    without = Objects(objects.packs.parent)
    kept = without._load()
    moved = [key for name in stale for key, _, _ in objects.read_index(name) if key in live]
    for key in moved:
        if kept.get(key, ("",))[0] in stale:
            del kept[key]
    with Writer(without) as writer:
        for key in dict.fromkeys(moved):
            if key not in without:
                writer.add(b"".join(objects.pieces(key)))
        writer.publish()
    for name in stale:
        for suffix in (".idx", ".pack"):
            os.unlink(objects.packs / (name + suffix))


def clone(source: int, out: int) -> bool:
    """Share the blocks of `source` with the empty file `out`; False where the file system cannot."""
    try:
        fcntl.ioctl(out, _FICLONE, source)
    except OSError:
        return False
    return True


class ScatteredError(Exception):
    """A sparse file has its data in too many places."""


def find_segments(fd: int, size: int, most: int) -> Segments | None:
    """Where an open file really has data; None: everywhere. Raises ScatteredError beyond `most` places."""
    found: Segments = []
    at = 0
    try:
        while at < size:
            try:
                start = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break
                raise
            at = min(os.lseek(fd, start, os.SEEK_HOLE), size)
            if at <= start:
                return None
            if len(found) >= most:
                raise ScatteredError
            found.append((start, at - start))
    except OSError:  # the file system knows no holes
        return None
    return None if found == [(0, size)] else found


def read_segments(fd: int, segments: Segments) -> Iterator[bytes]:
    for start, length in segments:
        at, left = start, length
        while left and (data := os.pread(fd, min(left, _PIECE), at)):
            yield data
            at, left = at + len(data), left - len(data)


def _hash_of(fd: int) -> str:
    digest = hashlib.sha256()
    for data in read_segments(fd, [(0, os.fstat(fd).st_size)]):
        digest.update(data)
    return digest.hexdigest()


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
