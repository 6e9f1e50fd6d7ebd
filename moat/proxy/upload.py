"""The way up: a request head and its body, carried to the upstream as they come.

`Expect: 100-continue` needs nothing here: it is passed on, the upstream's 100 is passed back (`download`),
and the client then sends its body. A client that does not wait just sends; both are carried as they come.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable
from time import monotonic

from moat.proxy.events import DeniedError
from moat.proxy.head import NONE, MalformedError, RequestHead
from moat.proxy.message import Body, BodyWriter, MessageReader
from moat.proxy.request_body import FilteredBody
from moat.proxy.stream import PausableStream, Stream, StreamError

GONE = "client went away"
Judged = tuple[Body | FilteredBody, bytes]  # a body, and its beginning


class Upload:
    """One request. Trailers end here: what is judged in a head must not follow a body."""

    done = False  # all of it is on its way
    gone = False  # the client has left
    upstream: Stream | None = None  # where it goes at this time
    fault: MalformedError | DeniedError | None = None  # what is wrong with its body

    def __init__(
        self,
        client: MessageReader,
        head: RequestHead,
        wire: bytes,
        *,
        judged: Judged | None = None,
        patience: float | None = None,
    ) -> None:
        """Takes what has arrived of the body. `wire` is the head as it goes up, `head` tells its framing.

        `judged` is the body with what somebody has read of it already.
        `patience`: seconds from the last of the request to the head of its answer; None: the usual limit.
        Raises MalformedError, DeniedError.
        """
        self._client = client
        self._patience = client.limits.response_head_timeout if patience is None else patience
        self._writer = BodyWriter.of(head.framing)
        self.body, read = judged or (client.body(head, blame="client"), b"")
        if head.framing is not NONE:
            wire += self._writer.piece(read + self.body.take())
            if self.body.done:
                wire += self._writer.end()
        self.whole = self.body.done  # `start` is the complete request: it can be sent a second time
        self.start = wire

    async def send_start(self, upstream: Stream) -> None:
        await upstream.send(self.start)
        if self.whole:
            self._finish()

    async def send_ahead(self, upstream: PausableStream) -> None:
        """Carry up what comes for as long as the upstream takes it and says nothing. Never raises.

        Most bodies have gone by then, and nobody had to listen meanwhile. `send_rest` carries what is left.
        """
        if isinstance(self.body, Body):
            await self._blaming(self._send_ahead(self._client.stream, self.body, upstream), upstream)

    async def send_rest(self, upstream: Stream) -> None:
        """Carry the rest up. Never raises: what the upstream answers decides what comes of it."""
        if self.fault is None:
            await self._blaming(self._send_rest(upstream), upstream)

    async def _send_ahead(self, client: Stream, body: Body, upstream: PausableStream) -> None:
        self._expect()
        while upstream.quiet():
            payload = body.take()
            if payload or body.done:
                try:
                    took = upstream.post(self._next(payload, upstream))
                except StreamError:
                    return
                if body.done:
                    self._finish()
                if body.done or not took:
                    return  # who takes nothing may be about to refuse what it does not read
                self._expect()
            elif client.ready():
                await body.wait()
            else:
                await upstream.either(client)

    async def _send_rest(self, upstream: Stream) -> None:
        while not self.done:
            self._expect()
            wire = self._next(await self.body.next(), upstream)
            try:
                await upstream.send(wire)
            except StreamError:
                return  # it takes no more, but it may have answered, and that answer counts
            if self.body.done:
                self._finish()

    async def _blaming(self, sending: Awaitable[None], upstream: Stream) -> None:
        """What breaks on its way up was broken by the client."""
        try:
            await sending
        except (MalformedError, DeniedError) as error:
            self.fault = error
            upstream.abort(str(error))
        except StreamError:
            self.leave()

    def _expect(self) -> None:
        self._client.stream.deadline = monotonic() + self._client.limits.body_idle_timeout

    def _next(self, payload: bytes, upstream: Stream) -> bytes:
        """What comes next on the wire. While the request moves, its answer is not late."""
        upstream.deadline = monotonic() + self._patience
        wire = self._writer.piece(payload)
        return wire + self._writer.end() if self.body.done else wire

    def _finish(self) -> None:
        self.done = True
        self._client.stream.deadline = math.inf  # the client waits for us now

    def leave(self) -> None:
        """The client has gone; nobody needs the answer."""
        self.gone = True
        if self.upstream is not None:
            self.upstream.abort(GONE)
