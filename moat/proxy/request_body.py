"""Request bodies that are read on their way up: searched for placeholders, or with credentials put in.

Only requests to hosts whose grants ask for it, or that no grant is for, come here. What has come is passed on
before more is waited for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import anyio.lowlevel

from moat.proxy.decoding import Decoder, UnreadableBodyError, decoder
from moat.proxy.events import DeniedError
from moat.proxy.fields import without
from moat.proxy.head import CHUNKED, LENGTH, MalformedError, RequestHead
from moat.proxy.limits import Limits
from moat.proxy.message import Body
from moat.proxy.substitute import Substitution, spelling_of

_OF_LENGTH = frozenset({b"content-length", b"transfer-encoding"})
_OF_CONTENT = frozenset({b"content-encoding", b"content-md5", b"digest", b"content-digest", b"repr-digest"})


class Text(Protocol):
    """What the text of a body goes through. Both methods may raise DeniedError."""

    def feed(self, data: bytes) -> bytes: ...
    def finish(self) -> bytes: ...


class FilteredBody:
    """A body with something in its way. To be read like a `Body`."""

    def __init__(self, body: Body, start: bytes, text: Text, coding: Opening | None = None) -> None:
        """`start`: what somebody has read of `body` already."""
        self._body = body
        self._start = start
        self._text = text
        self._coding = coding
        self._pieces: Iterator[bytes] | None = None  # of what has come, as they leave
        self.done = False

    @property
    def size(self) -> int:
        """Payload bytes that have come."""
        return self._body.size

    def take(self) -> bytes:
        """Payload that is here already; perhaps none. Raises MalformedError, DeniedError."""
        if self._pieces is None and (data := self._arrived()):
            if self._coding is None:
                return self._text.feed(data) + self._end()
            self._pieces = self._coding.feed(data, self._text)
        if self._pieces is not None:
            if (piece := next(self._pieces, None)) is not None:
                return piece
            self._pieces = None
        return self._end()

    async def next(self) -> bytes:
        """The payload that comes next; b"" only at the end. Raises as `take`, and StreamError."""
        while not (payload := self.take()) and not self.done:
            if self._pieces is None and not self._body.done:
                await self._body.wait()
            else:
                await anyio.lowlevel.checkpoint()  # much text may come of few bytes
        return payload

    def _arrived(self) -> bytes:
        start, self._start = self._start, b""
        return start + self._body.take()

    def _end(self) -> bytes:
        if not self._body.done or self.done:
            return b""
        if self._coding is not None:
            self._coding.finish()
        self.done = True
        return self._text.finish()


class Opening:
    """gzip and deflate taken off a body, which goes up without: compressed, a credential could come back."""

    def __init__(self, opened: Decoder, limit: int) -> None:
        """`limit`: bytes that may come out."""
        self._decoder = opened
        self._left = limit

    def feed(self, data: bytes, text: Text) -> Iterator[bytes]:
        """Pieces, some of them empty. Raises MalformedError, DeniedError."""
        try:
            for piece in self._decoder.feed(data):
                self._left -= len(piece)
                if self._left < 0:
                    reason = "the body decompresses to too much"
                    raise MalformedError("body-too-large", reason, 413, "client")
                yield text.feed(piece)
        except UnreadableBodyError as error:
            raise _broken(error) from None

    def finish(self) -> None:
        """The body is over. Raises MalformedError."""
        try:
            self._decoder.finish()
        except UnreadableBodyError as error:
            raise _broken(error) from None


def substituted(
    head: RequestHead, body: Body, start: bytes, substitution: Substitution, limits: Limits
) -> FilteredBody | None:
    """The body with credentials; None when it passes as it is, because no grant asks for it.

    Raises DeniedError when a placeholder in it would not be seen.
    """
    spelling = spelling_of(_field(head, b"content-type"))
    text = substitution.body(spelling) if spelling is not None else None
    if text is None:
        return None
    try:
        opened = decoder(head.headers, limits.decoded_step)
    except UnreadableBodyError as error:
        raise DeniedError(substitution.unreadable(str(error))) from None
    return FilteredBody(body, start, text, Opening(opened, limits.inflated) if opened is not None else None)


def resized(head: RequestHead, length: int | None) -> RequestHead:
    """How a body goes up: with a length, or else in chunks."""
    if length is None:
        return head._replace(framing=CHUNKED, length=0)
    return head._replace(framing=LENGTH, length=length, expect_continue=False)


def resized_fields(fields: bytes, head: RequestHead) -> bytes:
    """Fields for such a body: what described the old one goes. A body that was read is not waited for."""
    if head.framing is CHUNKED:
        return without(fields, _OF_LENGTH | _OF_CONTENT) + b"\r\nTransfer-Encoding: chunked"
    gone = _OF_LENGTH | _OF_CONTENT | {b"expect"}
    return without(fields, gone) + b"\r\nContent-Length: %d" % head.length


def _field(head: RequestHead, wanted: bytes) -> bytes:
    """The value of a field in lower case; b"" when there is none."""
    return next((value.lower() for name, value in head.headers if name.lower() == wanted), b"")


def _broken(error: UnreadableBodyError) -> MalformedError:
    return MalformedError("bad-body", str(error), 400, "client")
