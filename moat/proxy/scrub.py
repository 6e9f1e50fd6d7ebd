"""Secrets out of responses: same-length masking of streams, headers and compressed bodies. Sans-IO."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Protocol

from moat.errors import MoatError
from moat.proxy.http1 import Headers
from moat.proxy.limits import Limits

_MASK = b"*"
_GZIP = 16 + zlib.MAX_WBITS
_READABLE = (b"gzip", b"deflate")
# gRPC and Connect compress message by message, inside a body that looks plain.
_BY_MESSAGE = frozenset({b"grpc-encoding", b"connect-content-encoding"})
# What describes the bytes as the server encoded them, and no longer holds once they are decoded or masked.
_OF_ENCODING = frozenset(
    {b"content-encoding", b"content-length", b"content-md5", b"digest", b"content-digest"}
)


class UnreadableBodyError(MoatError):
    """A body that cannot be looked into: unknown encoding, or compressed data that is broken."""


class Scrubber:
    """Masks secrets in a stream, wherever it is split, with `*` of the same length.

    Only a suffix that could be the start of a secret is held back, so events are not delayed.
    """

    __slots__ = ("_masked", "_raw", "_secrets")

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._secrets = tuple(secret for secret in secrets if secret)
        self._raw = b""  # held back, as it came: what a secret is looked for in
        self._masked = b""  # the same bytes as they will leave

    def feed(self, data: bytes | bytearray | memoryview) -> bytes:
        """What can leave now."""
        raw = self._raw + bytes(data)
        masked = _masked(raw, self._masked + raw[len(self._masked) :], self._secrets)
        free = len(raw) - _held(raw, self._secrets)
        self._raw, self._masked = raw[free:], masked[free:]
        return masked[:free]

    def finish(self) -> bytes:
        """What was held back; the stream is over."""
        rest, self._raw, self._masked = self._masked, b"", b""
        return rest


class BodyScrubber:
    """A response body, decoded if it is gzip or deflate, scrubbed, and passed on as identity."""

    __slots__ = ("_decoder", "_scrubber", "_secrets", "decoded")

    def __init__(self, secrets: Sequence[bytes], headers: Headers, limits: Limits) -> None:
        """`headers` are the response's. Raises UnreadableBodyError: withhold the response, 502."""
        self._secrets = tuple(secrets)
        self._scrubber = Scrubber(secrets)
        self._decoder = _decoder(_encodings(headers), limits.decoded_step)
        self.decoded = not isinstance(self._decoder, _Identity)
        """Whether the body leaves without its Content-Encoding and with another length."""

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[bytes]:
        """Pieces of at most about `limits.decoded_step`; take them all, one by one, under back-pressure.

        Lazy: a bomb is decompressed only as fast as its pieces are taken. Raises UnreadableBodyError.
        """
        for piece in self._decoder.feed(bytes(data)):
            if clean := self._scrubber.feed(piece):
                yield clean

    def finish(self) -> bytes:
        """What was held back. Raises UnreadableBodyError when compressed data ended early."""
        self._decoder.finish()
        return self._scrubber.finish()

    def headers(self, headers: Headers) -> Headers:
        """The response's headers, masked, and without what no longer holds once the body is decoded."""
        masked = scrub_headers(headers, self._secrets)
        if not self.decoded:
            return masked
        return tuple(field for field in masked if field[0].lower() not in _OF_ENCODING)


def mask(data: bytes, secrets: Sequence[bytes]) -> bytes:
    """`data` with every secret in it masked."""
    return _masked(data, data, tuple(filter(None, secrets)))


def scrub_headers(headers: Headers, secrets: Sequence[bytes]) -> Headers:
    """Header fields with every secret in names and values masked."""
    return tuple(
        (mask(name, secrets), mask(value, secrets))
        if any(secret in value or secret in name for secret in secrets)
        else (name, value)
        for name, value in headers
    )


def readable_encodings(headers: Headers) -> Headers:
    """Request headers whose Accept-Encoding names only what `BodyScrubber` can open.

    Without one a server may encode as it likes, so `identity` is then asked for.
    """
    names = b",".join(value for name, value in headers if name.lower() == b"accept-encoding").lower()
    offered = {item.partition(b";")[0].strip() for item in names.split(b",") if not _is_refusal(item)}
    wanted = [encoding for encoding in _READABLE if encoding in offered or b"*" in offered]
    kept = [field for field in headers if field[0].lower() != b"accept-encoding"]
    return (*kept, (b"Accept-Encoding", b", ".join(wanted) or b"identity"))


def _masked(raw: bytes, text: bytes, secrets: tuple[bytes, ...]) -> bytes:
    """`text` with stars where `raw` holds a secret; overlapping finds are all masked."""
    stars: bytearray | None = None
    for secret in secrets:
        at = raw.find(secret)
        while at >= 0:
            if stars is None:
                stars = bytearray(text)
            stars[at : at + len(secret)] = _MASK * len(secret)
            at = raw.find(secret, at + 1)
    return text if stars is None else bytes(stars)


def _held(raw: bytes, secrets: tuple[bytes, ...]) -> int:
    """Length of the longest suffix that is a proper prefix of a secret."""
    held = 0
    for secret in secrets:
        at = raw.find(secret[:1], max(0, len(raw) - len(secret) + 1))
        while at >= 0 and not secret.startswith(raw[at:]):
            at = raw.find(secret[:1], at + 1)
        if at >= 0:
            held = max(held, len(raw) - at)
    return held


def _is_refusal(item: bytes) -> bool:
    """Whether an Accept-Encoding item has weight zero (`br;q=0`)."""
    _, _, weight = item.replace(b" ", b"").partition(b";q=")
    return bool(weight) and not weight.strip(b"0.")


def _encodings(headers: Headers) -> list[bytes]:
    found = []
    for name, values in headers:
        key = name.lower()
        if key == b"content-encoding" or key in _BY_MESSAGE:
            names = [value.strip(b" \t") for value in values.lower().split(b",")]
            suffix = b" by message" if key in _BY_MESSAGE else b""
            found += [value + suffix for value in names if value not in {b"", b"identity"}]
    return found


class _Decoder(Protocol):
    def feed(self, data: bytes) -> Iterator[bytes]: ...

    def finish(self) -> None: ...


def _decoder(encodings: list[bytes], step: int) -> _Decoder:
    match encodings:
        case []:
            return _Identity()
        case [b"gzip" | b"x-gzip"]:
            return _Inflate(step, gzip=True)
        case [b"deflate"]:
            return _Inflate(step, gzip=False)
        case _:
            names = b", ".join(encodings).decode("latin-1")
            raise UnreadableBodyError(
                f"the response is encoded as {names}, which cannot be checked for secrets"
            )


class _Identity:
    def feed(self, data: bytes) -> Iterator[bytes]:
        yield data

    def finish(self) -> None:
        pass


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
                raise UnreadableBodyError("the response's compressed body is broken") from None
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
            raise UnreadableBodyError("the response's compressed body goes on after its end")
        return zlib.decompressobj(_GZIP)

    def finish(self) -> None:
        """Raises when the stream is cut; a body that never began (HEAD, 304) is none."""
        if (self._start or self._begun) and (self._stream is None or not self._stream.eof):
            raise UnreadableBodyError("the response's compressed body ended early")


def _deflate_bits(start: bytes) -> int:
    """Window bits for what servers call deflate: zlib (RFC 1950) as it should be, or raw (RFC 1951)."""
    wrapped = start[0] & 0x0F == 8 and (start[0] << 8 | start[1]) % 31 == 0
    return zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS
