"""What a run printed: `output.log`, the bytes as they came; `output.log.index`, when and on which stream.

A line of the index is `<seconds since the epoch> <o|e> <offset>`: a piece of stdout or stderr that reaches to
the offset of the next. A line that was lost to a full disk gives its bytes to the piece before. Offsets count
from the first byte of the run. At half of its limit a log is put aside as `output.log.1`, in place of the one
before, so that at least half of what the limit allows is there, and it is the newest.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal, Self

from moat.dataclass import dataclass
from moat.regex import regex
from moat.runtime.sandbox import Output

_NAME = "output.log"
_PIECE = 65536
_POLL = 0.1  # seconds between two looks at a growing file
_SAME = 0.001  # seconds: what comes so soon after something else has its time
_LINE = regex(rb"(\d{1,12}\.\d{3}) ([oe]) (\d{1,18})\n")


_Entry = tuple[float, Literal["stdout", "stderr"], int]
"""When, on which stream, from which offset on."""


class OutputLog:
    """Writes the log of one run. A full disk costs log, never the agent's progress."""

    def __init__(self, directory: Path, *, limit: int) -> None:
        """`limit`: bytes that the log and its index may take. Raises OSError."""
        self._path = directory / _NAME
        self._half = max(1, limit // 2)
        self._at = 0  # offset of the next byte
        self._moved = False
        self._open()
        self._lost = 0  # bytes that could not be written since the last success
        self.error = ""  # the first failure of the run, for its record

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        fd = os.open(self._path, flags, 0o600)
        try:
            index = os.open(_index_of(self._path), flags, 0o600)
        except BaseException:  # no descriptor is left, or no room
            os.close(fd)
            raise
        self._fd, self._index = fd, index
        self._room = self._half
        self._stream = ""  # of the last line of the index
        self._noted = 0.0  # when it was written

    def write(self, output: Output) -> bool:
        """Append what was printed now. Returns True when this is the first write that failed."""
        first = not self.error
        try:
            if self._room <= 0:
                self._put_aside()
            if self._lost:
                told = f"\n[moat: {self._lost} bytes of output could not be logged here]\n"
                self._append(Output(output.stream, told.encode()))
                self._lost = 0
            self._append(output)
        except OSError as error:
            self._lost += len(output.data)
            self.error = self.error or f"{_NAME}: {error.strerror}"
            return first
        return False

    def _append(self, output: Output) -> None:
        now = time.time()
        if (output.stream, True) != (self._stream, 0 <= now - self._noted < _SAME):
            # The index goes first: whoever has read a byte finds its line.
            self._room -= os.write(self._index, b"%.3f %c %d\n" % (now, ord(output.stream[3]), self._at))
            self._stream, self._noted = output.stream, now
        view = memoryview(output.data)
        while view:
            written = os.write(self._fd, view)
            self._at += written
            self._room -= written
            view = view[written:]

    def _put_aside(self) -> None:
        """Go on in a new file. Until there is one the descriptors stay, or others would get their numbers."""
        if not self._moved:  # else it has been, and only opening failed
            aside = _aside(self._path)
            os.replace(_index_of(self._path), _index_of(aside))
            os.replace(self._path, aside)
            self._moved = True
        before = self._fd, self._index
        self._open()
        self._moved = False
        for fd in before:
            os.close(fd)

    def close(self) -> None:
        os.close(self._fd)
        os.close(self._index)

    async def aclose(self) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Piece:
    """What came at one moment."""

    output: Output
    at: int  # offset of its first byte
    time: float | None  # seconds since the epoch; None: the log is from before there were times


def exists(directory: Path) -> bool:
    return (directory / _NAME).exists()


def size(directory: Path) -> int:
    """Bytes that were printed, with those that are no longer there."""
    with _Part(directory / _NAME) as newest:
        return newest.start + newest.size


def tail(directory: Path, count: int) -> bytes:
    """The last `count` bytes, or all that there are. Raises OSError when there is no log."""
    newest = directory / _NAME
    aside = _aside(newest)
    data = _end(newest, count)
    if len(data) < count and aside.exists():
        data = _end(aside, count - len(data)) + data
    return data


def _end(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - count))
        return file.read(count)


def since(directory: Path, moment: float) -> int:
    """The offset of the first byte that came at `moment` (seconds since the epoch) or later."""
    for part in _parts(directory):
        with part:
            found = part.since(moment)
        if found is not None:
            return found
    return size(directory)


def last_lines(directory: Path, count: int) -> int:
    """The offset of the last `count` lines."""
    with contextlib.ExitStack() as opened:
        parts = [opened.enter_context(part) for part in _parts(directory)]
        for part in reversed(parts):
            at, seen = part.last_lines(count, open_end=part is parts[-1])
            if at is not None:
                return part.start + at
            count -= seen
        return parts[0].start


def pieces(directory: Path, start: int, alive: Callable[[], bool]) -> Iterator[Piece]:
    """Everything from offset `start`, and what is added to it for as long as `alive` says so."""
    path = directory / _NAME
    with contextlib.ExitStack() as opened:
        older = [opened.enter_context(part) for part in _parts(directory)]
        while True:
            with older.pop(0) if older else _Part(path) as part:
                part.seek(start)
                while True:
                    going = alive()  # asked first: what was written until then is read below
                    yield from part.read()
                    if older or part.was_put_aside(path):
                        yield from part.read()
                        break
                    if not going:
                        return
                    time.sleep(_POLL)
                start = max(start, part.start + part.size)


class _Index:
    """The lines of an index, one after the other, while it grows."""

    def __init__(self, file: BinaryIO | None) -> None:
        self._file = file  # None: of a log from before there were any
        self._rest = b""
        self._now: _Entry | None = None
        self._then = self._read()
        self.start = self._then[2] if self._then else 0

    def at(self, offset: int) -> tuple[_Entry | None, int | None]:
        """The line of a byte that was read already, and the offset of the next line. Goes forward only."""
        while True:
            self._then = self._then or self._read()
            if self._then is None or self._then[2] > offset:
                return self._now, self._then[2] if self._then else None
            self._now, self._then = self._then, None

    def since(self, moment: float) -> int | None:
        while self._then is not None:
            if self._then[0] >= moment:
                return self._then[2]
            self._then = self._read()
        return None

    def close(self) -> None:
        if self._file:
            self._file.close()

    def _read(self) -> _Entry | None:
        while self._file and (line := self._file.readline()):
            self._rest += line
            if not line.endswith(b"\n"):
                return None  # it is being written
            match, self._rest = _LINE.fullmatch(self._rest), b""
            if match:
                return float(match[1]), "stderr" if match[2] == b"e" else "stdout", int(match[3])
        return None


class _Part:
    """One file of a log, and its index."""

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError."""
        self._file: BinaryIO = path.open("rb")
        try:
            index: BinaryIO | None = _index_of(path).open("rb")
        except FileNotFoundError:
            index = None
        self._index = _Index(index)
        self.since = self._index.since
        self.start = self._at = self._index.start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._index.close()

    @property
    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def seek(self, offset: int) -> None:
        self._at = max(self.start, offset)
        self._file.seek(self._at - self.start)

    def read(self) -> Iterator[Piece]:
        """What there is now."""
        while data := self._file.read(_PIECE):
            while data:
                entry, until = self._index.at(self._at)
                piece = data if until is None else data[: until - self._at]
                output = Output(entry[1] if entry else "stdout", piece)
                yield Piece(output, self._at, entry[0] if entry else None)
                self._at += len(piece)
                data = data[len(piece) :]

    def last_lines(self, count: int, *, open_end: bool) -> tuple[int | None, int]:
        """Where the last `count` lines begin, or None and how many there are.

        `open_end`: a line end at the very end ends the last line, and begins none.
        """
        at = end = self._file.seek(0, os.SEEK_END)
        seen = 0
        if count == 0:
            return end, 0
        while at > 0:
            length = min(_PIECE, at)
            at = self._file.seek(at - length)
            data = self._file.read(length)
            place = length
            while (place := data.rfind(b"\n", 0, place)) >= 0:
                if open_end and at + place == end - 1:
                    continue
                seen += 1
                if seen == count:
                    return at + place + 1, seen
        return None, seen

    def was_put_aside(self, path: Path) -> bool:
        """Whether the log goes on in another file."""
        try:
            newest = os.stat(path)
        except FileNotFoundError:
            return False  # about to be made, or the run is being destroyed
        own = os.fstat(self._file.fileno())
        return (newest.st_dev, newest.st_ino) != (own.st_dev, own.st_ino)


def _parts(directory: Path) -> Iterator[_Part]:
    """The files that there are, the oldest first. Raises FileNotFoundError when there is none."""
    path = directory / _NAME
    with contextlib.suppress(FileNotFoundError):
        yield _Part(_aside(path))
    yield _Part(path)


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")


def _index_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.index")
