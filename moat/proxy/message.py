"""One connection read as HTTP messages: head, body, head, body… Framing is `http1` and `chunked`'s.

A body is never collected: `next()` gives what has arrived. What was read beyond a message stays in
`buffer` for the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Literal

from moat.proxy.chunked import ChunkedReader, encode_chunk
from moat.proxy.fields import Headers
from moat.proxy.head import CHUNKED, LENGTH, NONE, UNTIL_CLOSE, Framing, RequestHead, ResponseHead
from moat.proxy.http1 import parse_request, parse_response
from moat.proxy.limits import Limits
from moat.proxy.stream import Stream, StreamError

# A head comes in one or two pieces. One that drips in must not be parsed anew for every byte: after this
# many pieces, only when a line is complete.
_PATIENCE = 16


class MessageReader:
    """Takes the bytes of one stream apart into messages."""

    __slots__ = ("buffer", "limits", "stream")

    def __init__(self, stream: Stream, limits: Limits) -> None:
        self.stream = stream
        self.limits = limits
        self.buffer = b""  # received and not yet part of a message

    async def request(self) -> RequestHead | None:
        """The next request; None when the client has finished. Raises MalformedError, StreamError."""
        stream, limits = self.stream, self.limits
        if not self.buffer:
            stream.deadline = monotonic() + limits.client_idle_timeout
            self.buffer = await stream.receive()
        if not self.buffer:
            return None
        head = parse_request(self.buffer, limits)
        if head is None:
            stream.deadline = monotonic() + limits.request_head_timeout
            patience = _PATIENCE
            while head is None:
                await self._more(patience)
                patience -= 1
                head = parse_request(self.buffer, limits)
        self.buffer = self.buffer[head.size :]
        return head

    async def response(self, method: bytes, upgrade: bytes = b"") -> ResponseHead:
        """The next response head, 1xx included. Raises MalformedError, StreamError."""
        if not self.buffer:
            self.buffer = await self.stream.receive()
        patience = _PATIENCE
        while (head := parse_response(self.buffer, method, self.limits, upgrade=upgrade)) is None:
            await self._more(patience)
            patience -= 1
        self.buffer = self.buffer[head.size :]
        return head

    async def _more(self, patience: int) -> None:
        """Receive more of a head; once `patience` has run out, until a line is complete."""
        while True:
            data = await self.stream.receive()
            if not data:
                raise StreamError(
                    "closed in the middle of a head" if self.buffer else "closed without an answer"
                )
            self.buffer += data
            if patience > 0 or b"\n" in data or len(self.buffer) > self.limits.head:
                return

    def body(self, head: RequestHead | ResponseHead, *, blame: Literal["client", "upstream"]) -> Body:
        """The body that follows `head`; to be read to its end before the next head."""
        return Body(self, head.framing, head.length, blame)


class Body:
    """Payload of one message, as it comes."""

    __slots__ = ("_chunks", "_framing", "_left", "_reader", "done", "meter", "size")

    def __init__(
        self, reader: MessageReader, framing: Framing, length: int, blame: Literal["client", "upstream"]
    ) -> None:
        self._reader = reader
        self._framing = framing
        self._left = length
        self._chunks = ChunkedReader(reader.limits, blame=blame) if framing is CHUNKED else None
        self.done = framing is NONE
        self.size = 0  # payload bytes seen so far
        self.meter: Callable[[int], None] | None = None  # told of payload before anybody gets it; may raise

    @property
    def trailers(self) -> Headers:
        """Trailer fields, once the body is done. `chunked` has refused those that no trailer may be."""
        return self._chunks.trailers if self._chunks is not None else ()

    def take(self) -> bytes:
        """Payload that is here already, without waiting; perhaps none.

        Raises MalformedError, and what `meter` raises.
        """
        reader = self._reader
        data = reader.buffer
        if not data or self.done:
            return b""
        if self._chunks is not None:
            slices, consumed = self._chunks.feed(data)
            payload = slices[0].tobytes() if len(slices) == 1 else b"".join(slices)
            reader.buffer = data[consumed:]
            self.done = self._chunks.done
        elif self._framing is LENGTH and len(data) >= self._left:
            payload, reader.buffer = data[: self._left], data[self._left :]
            self.done = True
        else:
            payload, reader.buffer = data, b""
            self._left -= len(data)  # meaningless, and not read, for a body that ends with the connection
        self.size += len(payload)
        if self.meter is not None:
            self.meter(len(payload))
        return payload

    async def wait(self) -> None:
        """Wait until more has come, or the body has ended. Raises StreamError when it can have no end."""
        data = await self._reader.stream.receive()
        if data:
            self._reader.buffer += data
        elif self._framing is UNTIL_CLOSE:
            self.done = True
        else:
            raise StreamError("closed in the middle of a body")

    async def next(self) -> bytes:
        """The payload that comes next; b"" only at the end. Raises MalformedError, StreamError."""
        while not (payload := self.take()) and not self.done:
            await self.wait()
        return payload


class BodyWriter:
    """Frames payload for the wire. `chunked` false: the payload is the wire. Knows nothing of a message."""

    __slots__ = ("_chunked",)

    def __init__(self, *, chunked: bool) -> None:
        self._chunked = chunked

    @staticmethod
    def of(framing: Framing) -> BodyWriter:
        return _CHUNKED if framing is CHUNKED else PLAIN

    def piece(self, payload: bytes) -> bytes:
        return encode_chunk(payload) if self._chunked else payload

    def end(self, trailers: Headers = ()) -> bytes:
        if not self._chunked:
            return b""
        if not trailers:
            return b"0\r\n\r\n"
        return b"0\r\n" + b"".join(b"%b: %b\r\n" % field for field in trailers) + b"\r\n"


PLAIN, _CHUNKED = BodyWriter(chunked=False), BodyWriter(chunked=True)
