"""A client that speaks HTTP/2: every stream is an exchange like any other, over a pipe.

  the client's HEADERS and DATA → HTTP/1.1 bytes → near end → `Exchange`
  `Exchange` → HTTP/1.1 bytes → far end → HEADERS, DATA and trailers to the client

So nothing of an HTTP/2 request escapes the rules of `http1`, and policy, injection, leak guard, scrubbing
and records are the same code. All streams of a connection are for its tunnel's authority.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from time import monotonic

import anyio
from anyio.abc import TaskGroup

from moat.proxy import h2_fields
from moat.proxy.answers import malformed
from moat.proxy.chunked import encode_chunk
from moat.proxy.exchange import Exchange
from moat.proxy.h2_link import (
    REFUSAL,
    RESET,
    DataReceived,
    ErrorCodes,
    Event,
    Link,
    LinkError,
    RequestReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from moat.proxy.head import MalformedError
from moat.proxy.limits import Limits
from moat.proxy.message import MessageReader
from moat.proxy.pipe import PipeEnd
from moat.proxy.site import Setup, Site
from moat.proxy.stream import Stream, StreamError
from moat.proxy.upload import GONE

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Request:
    """One stream of the client's."""

    id: int
    near: PipeEnd  # the exchange's
    far: PipeEnd  # ours
    limits: Limits
    method: bytes = b"GET"
    chunked: bool = False
    left: int | None = None  # bytes of DATA still to come; None: any number
    ended: bool = False  # the request has come as a whole
    untaken: int = 0  # flow-controlled bytes that the exchange has not received
    fault: MalformedError | None = None  # what makes it no request
    begun: bool = False  # the exchange has the head
    answered: bool = False  # END_STREAM has been sent
    code: ErrorCodes = ErrorCodes.INTERNAL_ERROR  # what a cut response is cut with


class Server:
    """Serves one connection of a client to one site."""

    def __init__(self, setup: Setup, stream: Stream, site: Site) -> None:
        self._setup = setup
        self._site = site
        self._stream = stream
        self._link = Link(stream, setup.limits, client_side=False)
        self._requests: dict[int, _Request] = {}
        self._unanswered = 0  # of them; to the client the others are over
        self._tasks: TaskGroup
        self._reading = anyio.CancelScope()
        self._closing = False
        # gRPC's streams may have nothing to say for long; whether their peers live, TCP keeps asking.
        hour = setup.limits.tunnel_idle_timeout
        self._patient = replace(setup.limits, body_idle_timeout=hour, response_head_timeout=hour)

    async def run(self) -> None:
        """Serve until the client leaves, breaks the protocol, or `finish` has been called and all is done."""
        link = self._link
        async with anyio.create_task_group() as writing:
            writing.start_soon(link.write)
            try:
                link.start()
                self._await_requests()
                async with anyio.create_task_group() as self._tasks:
                    await self._read()
                await link.aclose()
            finally:
                writing.cancel_scope.cancel()

    def finish(self) -> None:
        """Take no further request; end when the last of those under way has."""
        if not self._closing:
            self._closing = True
            self._link.h2.goaway()
            self._link.flush()
            if not self._requests:
                self._reading.cancel()

    # --- what comes from the client --------------------------------------------------------------

    async def _read(self) -> None:
        reason = GONE
        try:
            with self._reading:
                await self._link.read(self._handle)
        except LinkError as error:
            reason = f"the client broke HTTP/2: {error}"
            self._refused(MalformedError("http2", str(error), 400, "client"), 0)
        except StreamError:
            pass
        finally:
            self._link.abandon()
            for request in tuple(self._requests.values()):
                request.near.lose(reason)

    def _handle(self, event: Event) -> None:
        match event:
            case RequestReceived():
                self._begin(event)
            case DataReceived():
                self._data(event)
            case TrailersReceived():
                self._trailers(event)
            case StreamEnded():
                self._ended(event.stream_id)
            case StreamReset():
                if (request := self._requests.get(event.stream_id)) is not None:
                    request.near.lose(GONE)
                    request.far.abort(GONE)

    def _begin(self, event: RequestReceived) -> None:
        number, setup = event.stream_id, self._setup
        ended = event.stream_ended is not None
        # Streams that were reset still count until their exchange has unwound: resetting buys nothing.
        if self._closing or self._unanswered >= setup.limits.h2_streams or not setup.streams.take():
            self._link.reset(number, ErrorCodes.REFUSED_STREAM)
            self._link.spend(REFUSAL)
            return
        near, far = PipeEnd.pair(setup.upstream.watch)
        fields = event.headers
        limits = self._patient if h2_fields.is_grpc(fields) else setup.limits
        request = self._requests[number] = _Request(number, near, far, limits, ended=ended)
        self._unanswered += 1
        near.on_taken = lambda: self._taken(request)
        try:
            rewritten = h2_fields.request(fields, scheme=self._site.scheme, ended=ended)
        except MalformedError as error:
            request.fault = error
        else:
            request.method = next(value for name, value in fields if name == b":method")
            request.chunked, request.left = rewritten.chunked, rewritten.length
            near.give(rewritten.head)
        self._stream.deadline = float("inf")  # each exchange keeps its own
        self._tasks.start_soon(self._serve, request)

    def _data(self, event: DataReceived) -> None:
        request = self._requests.get(event.stream_id)
        data, size = event.data or b"", event.flow_controlled_length or 0
        if request is None or request.fault is not None:
            self._link.taken(event.stream_id, size)
            return
        if request.left is not None:
            request.left -= len(data)
            if request.left < 0:
                self._link.taken(event.stream_id, size)
                self._malformed(request, "more DATA than content-length has announced")
                return
        if not data or request.near.broken:
            self._link.taken(event.stream_id, size)
            return
        request.untaken += size
        request.near.give(encode_chunk(data) if request.chunked else data)

    def _trailers(self, event: TrailersReceived) -> None:
        """Checked and dropped, as `Upload` would: what is judged in a head must not follow a body."""
        request = self._requests.get(event.stream_id)
        if request is not None and request.fault is None:
            try:
                h2_fields.trailers(event.headers, "client")
            except MalformedError as error:
                self._malformed(request, error.reason)

    def _ended(self, number: int) -> None:
        request = self._requests.get(number)
        if request is None or request.ended:
            return
        request.ended = True
        if request.left:
            self._malformed(request, "less DATA than content-length has announced")
        elif request.chunked and request.fault is None:
            request.near.give(b"0\r\n\r\n")

    def _malformed(self, request: _Request, reason: str) -> None:
        """A body that is not what its head said (RFC 9113 §8.1.1): it must not look whole to anybody.

        Making us reset costs a client what resetting costs it (CVE-2025-8671). Raises LinkError.
        """
        if request.fault is not None:
            return
        request.fault = MalformedError("bad-body", reason, 400, "client")
        if request.begun:
            request.code = ErrorCodes.PROTOCOL_ERROR
            self._refused(request.fault, 0)
            request.near.lose(reason)
            request.far.abort(reason)
        self._link.spend(RESET)

    def _refused(self, fault: MalformedError, status: int) -> None:
        url, denial = self._site.url(b"/"), malformed(fault).denial
        self._setup.refused("-", url, status, denial=denial, protocol=self._site.protocol)

    def _taken(self, request: _Request) -> None:
        size, request.untaken = request.untaken, 0
        self._link.taken(request.id, size)

    # --- one stream ------------------------------------------------------------------------------

    async def _serve(self, request: _Request) -> None:
        """One exchange from its first byte to its last. What goes wrong in it ends it, and nothing else."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._respond, request)
                await self._exchange(request)
                await request.near.aclose()
        except Exception:  # a mistake of ours must end one stream, not all of them
            _log.exception("a stream ended by an error in moat")
        finally:
            request.near.abort()
            request.far.abort()
            self._taken(request)
            if not request.answered:
                self._unanswered -= 1
                self._link.reset(request.id, request.code)
            del self._requests[request.id]
            self._setup.streams.give_back()
            self._await_requests()

    def _await_requests(self) -> None:
        if not self._requests:
            self._stream.deadline = monotonic() + self._setup.limits.client_idle_timeout
            if self._closing:
                self._reading.cancel()

    async def _exchange(self, request: _Request) -> None:
        reader = MessageReader(request.near, request.limits)
        with suppress(StreamError):
            try:
                if request.fault is not None:
                    raise request.fault
                request.begun = True
                head = await reader.request()
            except MalformedError as error:
                self._refused(error, error.status)
                await request.near.send(malformed(error).wire(with_body=request.method != b"HEAD"))
                return
            assert head is not None  # it was given before the exchange began
            await Exchange(self._setup, reader, self._site, head).run()

    async def _respond(self, request: _Request) -> None:
        """Carry what the exchange answers to the client. A response that is cut ends in a reset."""
        try:
            await self._carry(request)
        except (StreamError, MalformedError) as error:
            request.near.lose(str(error))

    async def _carry(self, request: _Request) -> None:
        link, far = self._link, request.far
        far.when_gone(link.changed.set, at_eof=False)
        reader = MessageReader(far, request.limits)
        while (head := await reader.response(request.method)).status < 200:
            link.send_headers(request.id, h2_fields.response_fields(head), end=False)
            await link.room()
        end = not h2_fields.has_body(head)
        link.send_headers(request.id, h2_fields.response_fields(head), end=end)
        if not end:
            body = reader.body(head, blame="upstream")
            while data := await body.next():
                await link.send_data(request.id, data, far)
            if far.truncated:
                raise StreamError("the response was cut")
            if last := h2_fields.trailer_fields(body.trailers):
                link.send_headers(request.id, last, end=True)
            else:
                link.end(request.id)
        request.answered = True
        self._unanswered -= 1
        if not request.ended:
            # The answer is whole, and needs no more of the request (§8.1).
            link.reset(request.id, ErrorCodes.NO_ERROR)
