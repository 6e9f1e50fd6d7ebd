"""Content codings taken off bodies, step by step: gzip and deflate. Sans-IO.

Nothing else is opened: who wants to read a body asks for no other coding, and does without one that comes all
the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Protocol

from moat.errors import MoatError
from moat.proxy.fields import Headers

_GZIP = 16 + zlib.MAX_WBITS
# gRPC and Connect compress message by message, inside a body that looks plain.
_BY_MESSAGE = frozenset({b"grpc-encoding", b"connect-content-encoding"})
# Those that errors and records name: any other word is the server's, and could be what it has been sent.
_NAMED = frozenset(b"gzip x-gzip deflate br zstd compress x-compress dcb dcz snappy lz4 aws-chunked".split())


class UnreadableBodyError(MoatError):
    """A body that cannot be looked into: unknown encoding, or compressed data that is broken."""


def _encodings(headers: Headers) -> list[bytes]:
    found = []
    for name, values in headers:
        key = name.lower()
        if key == b"content-encoding" or key in _BY_MESSAGE:
            names = [value.strip(b" \t") for value in values.lower().split(b",")]
            suffix = b" by message" if key in _BY_MESSAGE else b""
            encoded = [value for value in names if value not in {b"", b"identity"}]
            found += [(value if value in _NAMED else b"something unknown") + suffix for value in encoded]
    return found


class Decoder(Protocol):
    """Takes a body's bytes and gives what they stand for. Both methods raise UnreadableBodyError."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Pieces, made only as they are taken: a bomb grows no faster than somebody swallows it."""
        ...

    def finish(self) -> None:
        """The body is over."""
        ...


def decoder(headers: Headers, step: int) -> Decoder | None:
    """What opens the body under `headers`, in pieces of at most `step` bytes; None when nothing is encoded.

    Raises UnreadableBodyError.
    """
    match _encodings(headers):
        case []:
            return None
        case [b"gzip" | b"x-gzip"]:
            return _Inflate(step, gzip=True)
        case [b"deflate"]:
            return _Inflate(step, gzip=False)
        case encodings:
            names = b", ".join(encodings).decode("latin-1")
            raise UnreadableBodyError(f"the body is encoded as {names}, which cannot be looked into")


class _Inflate:
    """gzip (one member after the other) or deflate (with or without its zlib wrapper), step by step."""

    def __init__(self, step: int, *, gzip: bool) -> None:
        self._step = step
        self._gzip = gzip
        self._start = b""  # deflate: bytes kept until two of them tell whether there is a zlib wrapper
        self._stream = zlib.decompressobj(_GZIP) if gzip else None
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._stream is None:
            self._start += data
            if len(self._start) < 2:
                return
            data = self._start
            self._stream = zlib.decompressobj(_deflate_bits(data))
        while data:
            if self._stream.eof:
                self._stream = self._next_member()
            self._begun = True
            try:
                piece = self._stream.decompress(data, self._step)
            except zlib.error:
                raise UnreadableBodyError("the compressed body is broken") from None
            # With input used up, output may still wait inside for the next call: ask until it gives none.
            data = self._stream.unconsumed_tail or self._stream.unused_data
            if piece:
                yield piece
            while len(piece) == self._step and not data and not self._stream.eof:
                piece = self._stream.decompress(b"", self._step)
                if piece:
                    yield piece

    def _next_member(self) -> zlib._Decompress:
        if not self._gzip:
            raise UnreadableBodyError("the compressed body goes on after its end")
        return zlib.decompressobj(_GZIP)

    def finish(self) -> None:
        """Raises when the stream is cut; a body that never began (HEAD, 304) is none."""
        if (self._start or self._begun) and (self._stream is None or not self._stream.eof):
            raise UnreadableBodyError("the compressed body ended early")


def _deflate_bits(start: bytes) -> int:
    """Window bits for what servers call deflate: zlib (RFC 1950) as it should be, or raw (RFC 1951)."""
    wrapped = start[0] & 0x0F == 8 and (start[0] << 8 | start[1]) % 31 == 0
    return zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS
