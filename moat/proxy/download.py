"""The way down: a response, carried to the client as it comes, and scrubbed if a credential went up.

Nothing is read ahead: what has arrived is framed and sent before anything is waited for.
"""

from __future__ import annotations

import math
from functools import partial
from time import monotonic
from typing import Literal

from moat.proxy.budget import Spending
from moat.proxy.fields import join_fields, split_fields
from moat.proxy.head import CHUNKED, LENGTH, NONE, UNTIL_CLOSE, MalformedError, RequestHead, ResponseHead
from moat.proxy.mcp_filter import McpResponse, ToolFilter
from moat.proxy.message import PLAIN, Body, BodyWriter, MessageReader
from moat.proxy.relay import Traffic, Watch, relay
from moat.proxy.render import response_fields, response_wire
from moat.proxy.scrub import BodyScrubber, Scrubber, UnreadableBodyError, mask, mask_fields, scrub_headers
from moat.proxy.stream import BUFFER
from moat.proxy.upload import Upload
from moat.proxy.websocket import ClientFrames, Closing, Direction, Passing, ServerFrames

Unreadable = Literal["withhold", "pass"]
"""What becomes of a response to a request with a credential whose body cannot be looked into."""

INTERIM_RESPONSES = 16  # 1xx answers before the final one; servers send one or two


class Download:
    """One response. What is known of it when it breaks is what the record tells."""

    begun = False  # bytes of the final response have left: nothing else can be answered
    heard = False  # the upstream has answered something, be it a 1xx
    keep = False  # the client's connection can carry another request
    fields = b""  # as the client gets them, each with a CRLF before it
    traffic: Traffic | None = None  # after a 101
    unchecked = ""  # why the body passed without being looked into
    _body: Body | None = None
    _whole = 0  # bytes of a body that came with its head
    _scrubber: BodyScrubber | ToolFilter | None = None
    _writer = PLAIN
    _head: ResponseHead | None = None

    def __init__(
        self,
        client: MessageReader,
        request: RequestHead,
        secrets: tuple[bytes, ...],
        mcp: McpResponse | None = None,
        *,
        spending: Spending | None = None,
        swaps: tuple[tuple[bytes, bytes], ...] = (),
        unreadable: Unreadable = "withhold",
    ) -> None:
        self._unreadable = unreadable
        self._client = client
        self._request = request
        self._secrets = secrets
        self._mcp = mcp
        self._spending = spending
        self._swaps = swaps

    @property
    def status(self) -> int:
        return self._head.status if self._head is not None and self.begun else 0

    @property
    def size(self) -> int:
        """Body bytes that came down."""
        if self._body is not None:
            return self._body.size
        return self.traffic.down if self.traffic else self._whole

    @property
    def until_close(self) -> bool:
        """The end of the connection is the end of the body."""
        return self._head is not None and self._head.framing is UNTIL_CLOSE

    async def run(self, upstream: MessageReader, upload: Upload) -> bool:
        """Carry it all. True when the upstream connection can be used again.

        Raises MalformedError, UnreadableBodyError, DeniedError, StreamError (of either side).
        """
        head = self._head = await self._final_head(upstream)
        if head.status == 101:
            await self._switch(upstream, head)
            return False
        mcp = self._mcp
        if head.status == 401 and mcp is not None:
            mcp.check(head)
        if (
            (head.framing is LENGTH or head.framing is NONE)
            and len(upstream.buffer) >= head.length
            and not (head.encoded or self._spending is not None or (mcp is not None and mcp.filters))
        ):
            await self._pass_whole(upstream, head, upload)
            return head.keep_alive and upload.done and not upstream.buffer
        # A stream of events may be silent for hours; whether its peer lives, TCP keeps asking.
        patience = (
            math.inf if head.content_type == b"text/event-stream" else self._client.limits.body_idle_timeout
        )
        body = self._body = upstream.body(head, blame="upstream")
        if self._spending is not None:
            self._spending.response(head.length if head.framing is LENGTH else 0)
            body.meter = self._spending.received_body
        wire = self._start(head, upload)
        while True:
            wire = await self._frame(wire, body)
            if wire:
                await self._send(wire)
                wire = b""
            if body.done:
                break
            upstream.stream.deadline = monotonic() + patience
            await body.wait()
        if self.until_close and upstream.stream.truncated:
            await self._client.stream.aclose(goodbye=False)  # as doubtful for the client as it was for us
        return head.keep_alive and upload.done and not upstream.buffer

    async def _final_head(self, upstream: MessageReader) -> ResponseHead:
        """The head that counts; 1xx before it are passed on to clients that know them."""
        request = self._request
        for _ in range(INTERIM_RESPONSES):
            head = await upstream.response(request.method, request.upgrade)
            self.heard = True
            if self._spending is not None:
                self._spending.received(head.size)
            if head.status >= 200 or head.status == 101:
                return head
            if request.minor:
                await self._deliver(self._render(head, response_fields(head)))
        raise MalformedError("interim", "too many interim responses", 502, "upstream")

    async def _pass_whole(self, upstream: MessageReader, head: ResponseHead, upload: Upload) -> None:
        """An answer that is here, plain and whole, as most are: one search, one write."""
        length = self._whole = head.length
        payload, upstream.buffer = upstream.buffer[:length], upstream.buffer[length:]
        if payload and self._secrets:
            payload = mask(payload, self._secrets)
        self.keep = self._request.keep_alive and upload.done
        await self._send(self._render(head, response_fields(head, close=not self.keep)) + payload)

    def _start(self, head: ResponseHead, upload: Upload) -> bytes:
        """Decide how the body leaves, and make the head that says so."""
        framing = head.framing
        tools = self._mcp is not None and self._mcp.filters
        if (self._secrets or tools) and framing is not NONE:
            self._scrubber = self._scrubber_of(head, tools=tools)
        if framing is LENGTH and self._scrubber is not None and self._scrubber.decoded:
            framing = CHUNKED  # the length was that of the encoded body
        if framing is CHUNKED and not self._request.minor:
            framing = UNTIL_CLOSE  # HTTP/1.0 knows no chunks
        self.keep = self._request.keep_alive and upload.done and framing is not UNTIL_CLOSE
        self._writer = BodyWriter.of(framing)
        fields = response_fields(head, framing=framing, close=not self.keep)
        if self._scrubber is not None and self._scrubber.decoded:
            fields = join_fields(self._scrubber.headers(split_fields(fields)))
        return self._render(head, fields)

    def _scrubber_of(self, head: ResponseHead, *, tools: bool) -> BodyScrubber | ToolFilter | None:
        """What looks into the body. Raises UnreadableBodyError: then it is withheld."""
        try:
            scrubber = BodyScrubber(
                self._secrets,
                head.headers if head.encoded else (),
                self._client.limits,
                # Only who knows the length is sure to wait for all of it.
                prompt=head.framing is not LENGTH,
            )
        except UnreadableBodyError as error:
            if tools or self._unreadable == "withhold":
                raise
            self.unchecked = f"passed unchecked: {error}"
            return None
        return self._mcp.filtered(scrubber, head.content_type) if self._mcp and tools else scrubber

    def _render(self, head: ResponseHead, fields: bytes) -> bytes:
        """The head on the wire, without secrets: a mask is as long, and leaves line ends alone."""
        if not self._secrets:
            self.fields = fields
            return response_wire(head.status, head.reason, fields)
        size = len(head.reason)
        masked = mask_fields(head.reason + fields, self._secrets)
        self.fields = masked[size:]
        return response_wire(head.status, masked[:size], self.fields)

    async def _frame(self, wire: bytes, body: Body) -> bytes:
        """`wire` and what has come of the body, as it leaves here; what grows large is sent at once."""
        scrubber, writer = self._scrubber, self._writer
        payload = body.take()
        if scrubber is None:
            piece = writer.piece(payload)
            wire = wire + piece if wire else piece
        else:
            for scrubbed in scrubber.feed(payload, last=body.done):
                piece = writer.piece(scrubbed)
                wire = wire + piece if wire else piece
                if len(wire) >= BUFFER:
                    await self._send(wire)
                    wire = b""
            if body.done:
                wire += writer.piece(scrubber.finish())
        if body.done:
            wire += writer.end(scrub_headers(body.trailers, self._secrets) if body.trailers else ())
        return wire

    async def _send(self, wire: bytes) -> None:
        self.begun = True
        await self._deliver(wire)

    async def _deliver(self, wire: bytes) -> None:
        client = self._client
        stream = client.stream
        deadline = stream.deadline  # what an upload under way has set
        stream.deadline = monotonic() + client.limits.body_idle_timeout
        await stream.send(wire)
        stream.deadline = deadline

    async def _switch(self, upstream: MessageReader, head: ResponseHead) -> None:
        """101: from here on the bytes are not HTTP. They are passed on, masked if a credential went up.

        Raises UnreadableBodyError for a WebSocket with a credential that the server wants to compress.
        """
        client = self._client
        if self._secrets and b"sec-websocket-extensions" in head.block.lower():
            raise UnreadableBodyError("the server uses a WebSocket extension that was not offered to it")
        await self._send(self._render(head, response_fields(head)))
        client.stream.when_gone(None)
        self.traffic = Traffic()
        for reader in (client, upstream):
            reader.stream.unread(reader.buffer)
            reader.buffer = b""
        frames = self._frames(head)
        closing = Closing(*frames) if frames is not None else None
        other = Scrubber(self._secrets, prompt=True) if self._secrets else None
        up, down = frames if frames is not None else (None, other)
        watch: Watch | None = self._spending
        if closing is not None and watch is not None:
            watch = closing.watch(watch)
        idle = client.limits.tunnel_idle_timeout
        try:
            await relay(
                client.stream,
                upstream.stream,
                self.traffic,
                idle=idle,
                up=up,
                down=down,
                watches=(watch,) if watch is not None else (),
                at_idle=partial(closing.idle, idle) if closing is not None else None,
            )
        finally:
            if frames is not None:
                self.traffic.messages = (frames[0].messages, frames[1].messages)

    def _frames(self, head: ResponseHead) -> tuple[Direction, Direction] | None:
        """Both directions of a WebSocket; None where nobody has to know its frames."""
        if head.upgrade != b"websocket":
            return None
        if self._secrets:
            return ClientFrames(self._swaps), ServerFrames(self._secrets)
        return (Passing(), Passing()) if self._spending is not None else None
