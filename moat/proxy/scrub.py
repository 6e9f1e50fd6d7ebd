"""Secrets out of responses: same-length masking of streams, headers and compressed bodies. Sans-IO.

What is looked for, and how, is `needles`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from moat.proxy.decoding import Decoder, UnreadableBodyError, decoder
from moat.proxy.fields import Headers
from moat.proxy.limits import Limits
from moat.proxy.needles import needles
from moat.proxy.unescape import has_opener

# Line ends are never masked: they may be the framing of what a secret stands in.
_STARS = bytes(byte if byte in b"\r\n" else ord("*") for byte in range(256))
# What describes the bytes as the server encoded them, and no longer holds once they are decoded or masked.
_OF_ENCODING = frozenset(
    {b"content-encoding", b"content-length", b"content-md5", b"digest", b"content-digest"}
)

__all__ = ["BodyScrubber", "Scrubber", "UnreadableBodyError", "mask", "mask_fields", "scrub_headers"]


class Scrubber:
    """Masks secrets in a stream, wherever it is split, with `*` of the same length.

    Only a suffix that could be the start of a secret is held back, so events are not delayed.
    """

    __slots__ = ("_enough", "_left", "_masked", "_needles", "_raw")

    def __init__(self, secrets: Sequence[bytes], *, prompt: bool = False) -> None:
        """`prompt`: the stream holds messages whose ends nobody tells, see `Needles.held`."""
        self._needles = needles(tuple(secrets))
        self._enough = self._needles.enough if prompt and self._needles is not None else 0
        self._raw = b""  # the last that has come and may begin a secret
        self._masked = b""  # the same bytes as they leave
        self._left = 0  # how many of them have left already

    def feed(self, data: bytes | bytearray | memoryview) -> bytes:
        """What can leave now."""
        if self._needles is None:
            return bytes(data)
        raw = self._raw + bytes(data) if self._raw else bytes(data)
        spans = self._needles.spans(raw)
        masked = _masked(self._masked + raw[len(self._masked) :], spans) if spans or self._raw else raw
        size, kept = self._needles.held(raw, self._enough)
        free = len(raw) - size
        leaving = masked[self._left : free if kept else len(raw)]
        self._left = max(0, self._left - free) if kept else size
        self._raw, self._masked = raw[free:], masked[free:]
        return leaving

    def last(self, data: bytes) -> bytes:
        """What can leave when nothing comes after `data`."""
        if self._needles is None or not self._raw:
            return data if self._needles is None else _masked(data, self._needles.spans(data))
        return self.feed(data) + self.finish()

    def pause(self) -> bytes:
        """What was held back, at the end of a message that waits for no other one.

        As much of a secret as tells something of it is masked without having seen its end. Less leaves as it
        is; should the next message go on with it, the rest of the secret is masked.
        """
        if self._needles is None or not self._raw:
            return b""
        rest, begun = self._masked[self._left :], self._needles.held(self._raw, self._needles.telling)[1]
        self._left = len(self._raw)
        return rest.translate(_STARS) if begun else rest

    def finish(self) -> bytes:
        """What was held back; the stream is over."""
        rest, self._raw, self._masked, self._left = self._masked[self._left :], b"", b"", 0
        return rest


class BodyScrubber:
    """A response body, decoded if it is gzip or deflate, scrubbed, and passed on as identity."""

    __slots__ = ("_decoder", "_scrubber", "decoded")

    def __init__(
        self, secrets: Sequence[bytes], headers: Headers, limits: Limits, *, prompt: bool = False
    ) -> None:
        """`headers` are the response's. Raises UnreadableBodyError: withhold the response, 502."""
        self._scrubber = Scrubber(secrets, prompt=prompt)
        self._decoder = decoder(headers, limits.decoded_step)
        self.decoded = self._decoder is not None
        """Whether the body leaves without its Content-Encoding and with another length."""

    def feed(self, data: bytes | bytearray | memoryview, *, last: bool = False) -> Iterable[bytes]:
        """Pieces of at most about `limits.decoded_step`; take them all, one by one, under back-pressure.

        Lazy: a bomb is decompressed only as fast as its pieces are taken. `last`: only `finish` comes after
        it. Raises UnreadableBodyError.
        """
        if self._decoder is not None:
            return self._decoded(self._decoder, bytes(data))
        clean = self._scrubber.last(bytes(data)) if last else self._scrubber.feed(data)
        return (clean,) if clean else ()

    def _decoded(self, decoder: Decoder, data: bytes) -> Iterator[bytes]:
        for piece in decoder.feed(data):
            if clean := self._scrubber.feed(piece):
                yield clean

    def finish(self) -> bytes:
        """What was held back. Raises UnreadableBodyError when compressed data ended early."""
        if self._decoder is not None:
            self._decoder.finish()
        return self._scrubber.finish()

    def headers(self, headers: Headers) -> Headers:
        """The response's headers without what no longer holds once the body is decoded."""
        if not self.decoded:
            return headers
        return tuple(field for field in headers if field[0].lower() not in _OF_ENCODING)


def mask(data: bytes, secrets: Sequence[bytes]) -> bytes:
    """`data` with every secret in it masked."""
    sought = needles(tuple(secrets))
    return data if sought is None else _masked(data, sought.spans(data))


def scrub_headers(headers: Headers, secrets: Sequence[bytes]) -> Headers:
    """Header fields with every secret in names and values masked.

    In names a secret is found whatever became of its letters: names have no case, and HTTP/2 has no capitals.
    """
    secrets = tuple(secrets)
    sought, folded = needles(secrets), needles(secrets, folded=True)
    if sought is None or folded is None:
        return headers
    values = b"\n".join([value for _, value in headers])
    names = b"\n".join([name for name, _ in headers])
    if not (sought.spans(values) or folded.spans(names.lower())):
        return headers
    return tuple(
        (_masked(name, folded.spans(name.lower())), _masked(value, sought.spans(value)))
        for name, value in headers
    )


def mask_fields(fields: bytes, secrets: tuple[bytes, ...]) -> bytes:
    """The same for fields as they are on the wire; values too are masked in whatever letter case."""
    sought, folded = needles(secrets), needles(secrets, folded=True)
    if sought is None or folded is None:
        return fields
    spans = folded.spans(fields.lower())
    if has_opener(fields):  # capitals may be part of an escape, or what it stands for
        spans += sought.spans(fields)
    return _masked(fields, spans)


def _masked(text: bytes, spans: Sequence[tuple[int, int]]) -> bytes:
    """`text` with stars in `spans`; the very object when there is none."""
    if not spans:
        return text
    stars = bytearray(text)
    for start, end in spans:
        stars[start:end] = text[start:end].translate(_STARS)
    return bytes(stars)
