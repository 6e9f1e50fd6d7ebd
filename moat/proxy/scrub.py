"""Secrets out of responses: same-length masking of streams, headers and compressed bodies. Sans-IO."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from moat.errors import MoatError
from moat.proxy.http1 import Headers
from moat.proxy.limits import Limits


class UnreadableBodyError(MoatError):
    """A body that cannot be looked into: unknown encoding, or compressed data that is broken."""


class Scrubber:
    """Masks secrets in a stream, wherever it is split, with `*` of the same length.

    Only a suffix that could be the start of a secret is held back, so events are not delayed.
    """

    def __init__(self, secrets: Sequence[bytes]) -> None:
        raise NotImplementedError

    def feed(self, data: bytes | bytearray | memoryview) -> bytes:
        raise NotImplementedError

    def finish(self) -> bytes:
        """What was held back; the stream is over."""
        raise NotImplementedError


class BodyScrubber:
    """A response body, decoded if it is gzip or deflate, scrubbed, and passed on as identity."""

    decoded: bool  # True: the body leaves without its Content-Encoding and with another length

    def __init__(self, secrets: Sequence[bytes], headers: Headers, limits: Limits) -> None:
        """`headers` are the response's. Raises UnreadableBodyError: withhold the response, 502."""
        raise NotImplementedError

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[bytes]:
        """Pieces of at most about `limits.decoded_step`; take them one by one, under back-pressure.

        Lazy: nothing of `data` is lost or processed before it is iterated. Raises UnreadableBodyError.
        """
        raise NotImplementedError

    def finish(self) -> bytes:
        """What was held back. Raises UnreadableBodyError when compressed data ended early."""
        raise NotImplementedError

    def headers(self, headers: Headers) -> Headers:
        """The response's headers, masked, and without what no longer holds once the body is decoded."""
        raise NotImplementedError


def mask(data: bytes, secrets: Sequence[bytes]) -> bytes:
    """`data` with every secret in it masked."""
    raise NotImplementedError


def scrub_headers(headers: Headers, secrets: Sequence[bytes]) -> Headers:
    """Header fields with every secret in names and values masked."""
    raise NotImplementedError


def readable_encodings(headers: Headers) -> Headers:
    """Request headers whose Accept-Encoding names only what `BodyScrubber` can open (gzip, deflate)."""
    raise NotImplementedError
