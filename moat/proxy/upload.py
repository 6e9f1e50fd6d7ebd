"""The way up: a request head and its body, carried to the upstream as they come.

`Expect: 100-continue` needs nothing here: it is passed on, the upstream's 100 is passed back (`download`),
and the client then sends its body. A client that does not wait just sends; both are carried as they come.
"""

from __future__ import annotations

import math
from time import monotonic

from moat.proxy.events import DeniedError
from moat.proxy.head import NONE, MalformedError, RequestHead
from moat.proxy.message import Body, BodyWriter, MessageReader
from moat.proxy.request_body import FilteredBody
from moat.proxy.stream import Stream, StreamError

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

    async def send_rest(self, upstream: Stream) -> None:
        """Carry the rest up. Never raises: what the upstream answers decides what comes of it."""
        client, limits, body = self._client.stream, self._client.limits, self.body
        patience = self._patience
        try:
            while not self.done:
                client.deadline = monotonic() + limits.body_idle_timeout
                piece = self._writer.piece(await body.next())
                last = body.done
                # While the request moves, its answer is not late.
                upstream.deadline = monotonic() + patience
                try:
                    await upstream.send(piece + self._writer.end() if last else piece)
                except StreamError:
                    return  # it takes no more, but it may have answered, and that answer counts
                if last:
                    self._finish()
        except (MalformedError, DeniedError) as error:
            self.fault = error
            upstream.abort(str(error))
        except StreamError:
            self.leave()

    def _finish(self) -> None:
        self.done = True
        self._client.stream.deadline = math.inf  # the client waits for us now

    def leave(self) -> None:
        """The client has gone; nobody needs the answer."""
        self.gone = True
        if self.upstream is not None:
            self.upstream.abort(GONE)
