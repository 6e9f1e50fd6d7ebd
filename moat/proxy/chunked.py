"""Chunked bodies (RFC 9112 §7.1): strict, incremental, sans-IO. Only framing may enter this file."""

from __future__ import annotations

from enum import Enum
from typing import NoReturn

from moat.proxy import grammar
from moat.proxy.fields import Headers
from moat.proxy.head import Blame, MalformedError
from moat.proxy.limits import Limits

LAST_CHUNK = b"0\r\n\r\n"

_MAX_SIZE = 2**63 - 1
# What a trailer must not say after the fact (RFC 9110 §6.5.1): framing, routing, authentication.
_NO_TRAILER = frozenset({
    b"transfer-encoding", b"content-length", b"content-encoding", b"content-type", b"trailer", b"te", b"host",
    b"connection", b"upgrade", b"authorization", b"proxy-authorization", b"cookie", b"set-cookie", b"expect",
    b"alt-svc",
})  # fmt: skip


class _State(Enum):
    SIZE = "size"
    DATA = "data"
    DATA_END = "data-end"
    TRAILERS = "trailers"
    DONE = "done"


# Each look-up of a member by its class costs as much as ten of a name, until Python 3.12.
_SIZE, _DATA, _DATA_END, _TRAILERS, _DONE = _State


class ChunkedReader:
    """Takes a chunked body apart, at any split point.

    `feed(data)` gives the payload slices found (views into `data`, valid while it is) and how many bytes
    of `data` belong to this body: all of them, unless the body ended inside. `data[:consumed]` can be
    passed through verbatim; writing the slices anew with `encode_chunk` also drops extensions and trailers.
    """

    __slots__ = (
        "_blame",
        "_extensions",
        "_left",
        "_limits",
        "_line",
        "_state",
        "_trailers",
        "_trailers_size",
    )

    def __init__(self, limits: Limits, *, blame: Blame) -> None:
        self._limits = limits
        self._blame = blame
        self._state = _SIZE
        self._left = 0  # payload bytes of this chunk, or bytes of its CRLF, still to come
        self._line = b""  # start of a size or trailer line whose end has not come yet
        self._extensions = 0  # bytes of chunk extensions so far
        self._trailers: list[tuple[bytes, bytes]] = []
        self._trailers_size = 0

    def __repr__(self) -> str:
        return f"<ChunkedReader {self._state.value} left={self._left}>"

    @property
    def done(self) -> bool:
        """Whether the body has ended."""
        return self._state is _DONE

    @property
    def trailers(self) -> Headers:
        return tuple(self._trailers)

    def feed(self, data: bytes | bytearray) -> tuple[list[memoryview], int]:
        """Payload slices and consumed count. Raises MalformedError; the reader is dead after that."""
        slices: list[memoryview] = []
        view = memoryview(data)
        at, end = 0, len(data)
        while at < end and self._state is not _DONE:
            if self._state is _SIZE and not self._line:
                at = self._whole_chunks(data, view, at, slices)
                if at == end:
                    break
            if self._state is _DATA:
                stop = min(end, at + self._left)
                slices.append(view[at:stop])
                self._left -= stop - at
                at = stop
                if not self._left:
                    self._state, self._left = _DATA_END, 2
            elif self._state is _DATA_END:
                at = self._data_end(data, at)
            else:
                at = self._take_line(data, at)
        return slices, at

    def _whole_chunks(
        self, data: bytes | bytearray, view: memoryview, at: int, slices: list[memoryview]
    ) -> int:
        """Take chunks that are complete and plain: the common case, three times as fast as line by line."""
        while (match := grammar.PLAIN_CHUNK.match(data, at)) is not None:
            start = match.end()
            stop = start + int(match[1], 16)
            too_long = len(match[1]) > self._limits.chunk_digits
            if too_long or start == stop or data[stop : stop + 2] != b"\r\n":
                break
            slices.append(view[start:stop])
            at = stop + 2
        return at

    def _data_end(self, data: bytes | bytearray, at: int) -> int:
        """The CRLF after a chunk's data, which may come in two reads."""
        expected = b"\r\n"[2 - self._left :]
        got = bytes(data[at : at + self._left])
        if not expected.startswith(got):
            self._refuse("chunk-end", "chunk data is not followed by CRLF")
        self._left -= len(got)
        if not self._left:
            self._state = _SIZE
        return at + len(got)

    def _take_line(self, data: bytes | bytearray, at: int) -> int:
        newline = data.find(b"\n", at)
        stop = len(data) if newline < 0 else newline + 1
        room = self._line_limit() - len(self._line)
        if stop - at > room:
            self._refuse("chunk-line", "a chunk line or trailer is too long")
        line = self._line + bytes(data[at:stop])
        if newline < 0:
            self._line = line
            return stop
        self._line = b""
        if not line.endswith(b"\r\n"):
            self._refuse("bare-lf", "a chunk line ends in LF without CR")
        if self._state is _SIZE:
            self._size_line(line[:-2])
        else:
            self._trailer_line(line[:-2])
        return stop

    def _line_limit(self) -> int:
        if self._state is _SIZE:
            return self._limits.chunk_digits + self._limits.chunk_extension + 2
        return self._limits.trailers - self._trailers_size + 2

    def _size_line(self, line: bytes) -> None:
        match = grammar.CHUNK.fullmatch(line)
        if match is None:
            self._refuse("chunk-size", "a chunk size is not plain hexadecimal")
        digits, extension = match.groups()
        size = int(digits, 16) if len(digits) <= self._limits.chunk_digits else _MAX_SIZE + 1
        if size > _MAX_SIZE:
            self._refuse("chunk-overflow", "a chunk size does not fit a signed 64-bit number")
        self._extensions += len(extension)
        if len(extension) > self._limits.chunk_extension or self._extensions > self._limits.chunk_extensions:
            self._refuse("chunk-extension", "chunk extensions are too long")
        self._left = size
        self._state = _DATA if size else _TRAILERS

    def _trailer_line(self, line: bytes) -> None:
        if not line:
            self._state = _DONE
            return
        self._trailers_size += len(line) + 2
        match = grammar.FIELD_LINE.fullmatch(line)
        if match is None:
            self._refuse("bad-trailer", "a trailer is not a header field")
        name, value = match.groups()
        if name.lower() in _NO_TRAILER:
            self._refuse("bad-trailer", f"`{name.decode()}` may not be a trailer")
        if len(self._trailers) >= self._limits.fields:
            self._refuse("bad-trailer", "too many trailers")
        self._trailers.append((name, value.rstrip(b" \t")))

    def _refuse(self, code: str, reason: str) -> NoReturn:
        raise MalformedError(code, reason, 400 if self._blame == "client" else 502, self._blame)


def encode_chunk(payload: bytes | bytearray | memoryview) -> bytes:
    """One chunk on the wire; b"" for an empty payload, which would end the body."""
    size = len(payload)
    return b"".join((b"%x\r\n" % size, payload, b"\r\n")) if size else b""
