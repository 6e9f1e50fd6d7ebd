"""Chunked bodies (RFC 9112 §7.1): strict, incremental, sans-IO. Only framing may enter this file."""

from __future__ import annotations

from typing import Literal

from moat.proxy.http1 import Headers
from moat.proxy.limits import Limits

LAST_CHUNK = b"0\r\n\r\n"


class ChunkedReader:
    """Takes a chunked body apart, at any split point.

    `feed(data)` gives the payload slices found (views into `data`, valid while it is) and how many bytes
    of `data` belong to this body: all of them, unless the body ended inside. `data[:consumed]` can be
    passed through verbatim; writing the slices anew with `encode_chunk` also drops extensions and trailers.
    """

    __slots__ = ("done", "trailers")

    def __init__(self, limits: Limits, *, blame: Literal["client", "upstream"]) -> None:
        self.done = False
        self.trailers: Headers = ()

    def feed(self, data: bytes | bytearray | memoryview) -> tuple[list[memoryview], int]:
        """Payload slices and consumed count. Raises MalformedError; the reader is dead after that."""
        raise NotImplementedError


def encode_chunk(payload: bytes | bytearray | memoryview) -> bytes:
    """One chunk on the wire; b"" for an empty payload, which would end the body."""
    raise NotImplementedError
