"""A server that speaks HTTP/2: its streams look like the HTTP/1.1 connections that `Exchange` knows.

  `Exchange` → HTTP/1.1 bytes → near end → far end → HEADERS and DATA to the server
  the server's HEADERS, DATA and trailers → HTTP/1.1 bytes → near end → `Exchange`

A stream carries one exchange: its response says `Connection: close`. Windows open as the client takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from time import monotonic

import anyio
from anyio.abc import TaskGroup, TaskStatus

from moat.proxy import h2_fields
from moat.proxy.chunked import LAST_CHUNK, encode_chunk
from moat.proxy.download import INTERIM_RESPONSES
from moat.proxy.h2_link import (
    ConnectionTerminated,
    DataReceived,
    ErrorCodes,
    Event,
    InformationalResponseReceived,
    Link,
    LinkError,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from moat.proxy.head import MalformedError, RequestHead
from moat.proxy.limits import Limits
from moat.proxy.message import MessageReader
from moat.proxy.pipe import PipeEnd
from moat.proxy.stream import Stream, StreamError, UntakenError, Watch

_LAST_STREAM = 2**31 - 3  # identifiers are not used twice (§5.1.1)


@dataclass(slots=True, eq=False)
class _Call:
    """One stream of ours."""

    near: PipeEnd  # the exchange's
    far: PipeEnd  # ours
    id: int = 0  # 0: not begun
    method: bytes = b"GET"
    chunked: bool = False
    left: int | None = None  # bytes of DATA still to come; None: any number
    interim: int = 0  # heads before the final one
    answered: bool = False  # the final head has come
    trailers: bytes = LAST_CHUNK
    ended: bool = False  # the response has come as a whole
    untaken: int = 0  # flow-controlled bytes that the exchange has not received
    tasks: anyio.CancelScope = field(default_factory=anyio.CancelScope)


class Client:
    """One connection to one server."""

    def __init__(self, stream: Stream, limits: Limits, watch: Watch) -> None:
        self._stream = stream
        self._limits = limits
        self._watch = watch
        self._link = Link(stream, limits, client_side=True)
        self._calls: set[_Call] = set()
        self._begun: dict[int, _Call] = {}
        self._tasks: TaskGroup
        self._reading = anyio.CancelScope()
        self._open = True  # takes further calls
        self._reason = "the server is going away"  # why not

    @property
    def idle(self) -> bool:
        return not self._calls

    @property
    def free(self) -> bool:
        """Whether one more call would not have to wait."""
        h2 = self._link.h2
        most = h2.remote_settings.max_concurrent_streams
        return self._open and len(self._calls) < most and h2.highest_outbound_stream_id < _LAST_STREAM

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep the connection until it ends, is idle for long, or `finish` was called. Does not raise."""
        link = self._link
        try:
            async with anyio.create_task_group() as writing:
                writing.start_soon(link.write)
                link.start()
                self._rest()
                async with anyio.create_task_group() as self._tasks:
                    task_status.started()
                    await self._read()
                    self._tasks.cancel_scope.cancel()
                await link.aclose()
                writing.cancel_scope.cancel()
        finally:
            self._open = False
            self._stream.abort()

    def finish(self) -> None:
        """Take no further call; end when the last has."""
        self._open = False
        if not self._calls:
            self._reading.cancel()

    def call(self) -> PipeEnd:
        """A stream for one exchange, as if it were a connection: one that is over, once this one is."""
        near, far = PipeEnd.pair(self._watch)
        if not self._open:
            near.lose(UntakenError(self._reason))
            far.abort()
            return near
        call = _Call(near, far)
        near.on_taken = lambda: self._taken(call)
        self._calls.add(call)
        self._stream.deadline = math.inf  # each exchange keeps its own
        self._tasks.start_soon(self._send, call)
        return near

    # --- the request -----------------------------------------------------------------------------

    async def _send(self, call: _Call) -> None:
        with call.tasks:
            try:
                reader = MessageReader(call.far, self._limits)
                head = await reader.request()
                call.far.deadline = math.inf  # the exchange keeps it
                call.far.when_gone(partial(self._left, call))
                if call not in self._calls:
                    return  # the exchange gave it up before our first turn: nothing goes up
                if head is not None:
                    await self._carry(call, head, reader)
                    return
            except UntakenError as error:
                call.near.lose(error)
            except (StreamError, MalformedError) as error:
                call.near.lose(str(error))
            self._left(call)

    async def _carry(self, call: _Call, head: RequestHead, reader: MessageReader) -> None:
        link, h2 = self._link, self._link.h2
        if head.upgrade:
            raise StreamError("it speaks HTTP/2, where a connection cannot be upgraded")
        while self._open and h2.open_outbound_streams >= h2.remote_settings.max_concurrent_streams:
            await link.changed.wait()
        if not self._open:
            raise UntakenError(self._reason)  # a stream that begins after GOAWAY gets no answer (§6.8)
        call.id, call.method = h2.get_next_available_stream_id(), head.method
        self._begun[call.id] = call
        end = not h2_fields.has_body(head)
        link.send_headers(call.id, h2_fields.request_fields(head, "https"), end=end)
        if not end:
            body = reader.body(head, blame="client")
            while data := await body.next():
                await link.send_data(call.id, data, call.far)
            link.end(call.id)

    def _left(self, call: _Call) -> None:
        """The exchange is done with the stream, or has given it up."""
        if call not in self._calls:
            return
        self._calls.discard(call)
        self._begun.pop(call.id, None)
        call.far.abort()
        call.tasks.cancel()
        if call.id:
            self._taken(call)
            self._link.reset(call.id, ErrorCodes.NO_ERROR if call.ended else ErrorCodes.CANCEL)
        self._link.changed.set()
        self._rest()

    def _rest(self) -> None:
        if not self._calls:
            self._stream.deadline = monotonic() + self._limits.upstream_idle_timeout
            if not self._open:
                self._reading.cancel()

    # --- the response ----------------------------------------------------------------------------

    async def _read(self) -> None:
        reason = "the server closed the connection"
        try:
            with self._reading:
                await self._link.read(self._handle)
        except LinkError as error:
            reason = f"the server broke HTTP/2: {error}"
        except StreamError as error:
            reason = str(error)
        finally:
            self._open, self._reason = False, reason
            self._link.abandon()
            for call in tuple(self._calls):
                call.near.lose(reason)
                self._left(call)

    def _handle(self, event: Event) -> None:
        if isinstance(event, ConnectionTerminated):
            self._terminated(event.last_stream_id or 0)
            return
        call = self._begun.get(getattr(event, "stream_id", None) or 0)
        if isinstance(event, DataReceived):
            self._data(call, event)
        elif call is not None:
            try:
                self._message(call, event)
            except MalformedError as error:
                self._break(call, f"the response was malformed: {error.reason}")

    def _message(self, call: _Call, event: Event) -> None:
        match event:
            case InformationalResponseReceived() | ResponseReceived():
                ended = getattr(event, "stream_ended", None) is not None
                rewritten = h2_fields.response(event.headers, method=call.method, ended=ended)
                call.answered = rewritten.status >= 200
                call.interim += not call.answered
                if call.interim > INTERIM_RESPONSES:  # no window bounds them, and HPACK makes them of nothing
                    raise MalformedError("interim", "too many interim responses", 502, "upstream")
                call.chunked, call.left = rewritten.chunked, rewritten.length
                call.near.give(rewritten.head)
            case TrailersReceived():
                call.trailers = h2_fields.trailers(event.headers, "upstream")
            case StreamEnded():
                if call.left:
                    self._break(call, "less DATA than content-length has announced")
                elif call.chunked:
                    call.near.give(call.trailers)
                call.ended = True
            case StreamReset() if not call.ended:
                code = event.error_code
                reason = f"the server reset the stream ({getattr(code, 'name', code)})"
                call.near.lose(UntakenError(reason) if code == ErrorCodes.REFUSED_STREAM else reason)
            case _:
                pass

    def _data(self, call: _Call | None, event: DataReceived) -> None:
        data, size = event.data or b"", event.flow_controlled_length or 0
        if call is None or not data or call.near.broken:
            self._link.taken(event.stream_id, size)
            return
        if call.left is not None:
            call.left -= len(data)
        if not call.answered or (call.left is not None and call.left < 0):
            self._link.taken(event.stream_id, size)
            self._break(call, "DATA where none was announced")
            return
        call.untaken += size
        call.near.give(encode_chunk(data) if call.chunked else data)

    def _break(self, call: _Call, reason: str) -> None:
        self._link.reset(call.id, ErrorCodes.PROTOCOL_ERROR)
        call.near.lose(reason)

    def _taken(self, call: _Call) -> None:
        size, call.untaken = call.untaken, 0
        if call.id:
            self._link.taken(call.id, size)

    def _terminated(self, last: int) -> None:
        """GOAWAY: calls that the server has not taken are lost, the others go on (§6.8)."""
        self._open = False
        for number, call in tuple(self._begun.items()):
            if number > last:
                call.near.lose(UntakenError(self._reason))
        self._rest()
