"""An exchange that gives its stream up at the worst moment. The peer is the `h2` library, in the test's own loop."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import anyio
import pytest
from anyio.lowlevel import checkpoint
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import Event, RequestReceived, StreamEnded, StreamReset
from hyperframe.frame import GoAwayFrame

from moat.proxy.download import INTERIM_RESPONSES
from moat.proxy.h2_client import Client
from moat.proxy.limits import Limits
from moat.proxy.pipe import PipeEnd
from moat.proxy.stream import StreamError, Watch

pytestmark = pytest.mark.anyio
HEAD = b"POST /%d HTTP/1.1\r\nHost: api.test\r\nContent-Length: 4\r\n\r\n"
CANCEL = 8


class Peer:
    """The server's side of the connection."""

    def __init__(self, stream: PipeEnd) -> None:
        self._stream = stream
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="latin-1"))
        self.h2.initiate_connection()
        self.events: list[Event] = []

    async def serve(self) -> None:
        while data := await self._stream.receive():
            self.events += self.h2.receive_data(data)
            await self.flush()

    async def flush(self, more: bytes = b"") -> None:
        await self._stream.send(self.h2.data_to_send() + more)

    async def until(self, kind: type[Event], stream: int) -> Event:
        with anyio.fail_after(5):
            while True:
                for event in self.events:
                    if isinstance(event, kind) and getattr(event, "stream_id", 0) == stream:
                        return event
                await checkpoint()

    def paths(self) -> list[str]:
        return [dict(event.headers)[":path"] for event in self.events if isinstance(event, RequestReceived)]


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[tuple[Client, Peer]]:
    near, far = PipeEnd.pair(Watch())
    client, peer = Client(near, Limits(), Watch()), Peer(far)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(peer.serve)
        await tasks.start(client.run)
        yield client, peer
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("turns", range(6))
async def test_who_leaves_early_leaves_nothing_behind(anyio_backend: object, turns: int) -> None:
    """The request is on its way to the stream's task, in it, or at the server: in any case it is over."""
    async with connected() as (client, peer):
        near = client.call()
        await near.send(HEAD % 1)
        for _ in range(turns):
            await checkpoint()
        near.abort()
        other = client.call()
        await other.send(HEAD % 2 + b"body")
        with anyio.fail_after(5):
            while "/2" not in peer.paths():
                await checkpoint()
        begun = [event for event in peer.events if isinstance(event, RequestReceived)]
        if len(begun) == 2:
            reset = await peer.until(StreamReset, begun[0].stream_id)
            assert reset.error_code == CANCEL
        else:
            assert peer.paths() == ["/2"]
        await peer.until(StreamEnded, begun[-1].stream_id)
        other.abort()
        await peer.until(StreamReset, begun[-1].stream_id)
        assert client.idle
        assert client.free
        assert not client._begun


async def test_no_request_goes_up_for_who_has_left_before(anyio_backend: object) -> None:
    """The task that sends has its first turn only now: the head is there, and nobody who wants it sent."""
    async with connected() as (client, peer):
        near = client.call()
        await near.send(HEAD % 1)
        near.abort()
        await anyio.sleep(0.1)
        assert peer.paths() == []
        assert client.idle


async def test_interim_answers_that_nobody_reads_are_bounded(anyio_backend: object) -> None:
    """Whoever asked is busy with the first. Seen failing with every head kept: 360 KB on the wire were 730 MB here."""
    large = ("x", "a" * 3000)  # named again with one byte
    async with connected() as (client, peer):
        near = client.call()
        await near.send(HEAD % 1 + b"body")
        await peer.until(StreamEnded, 1)
        for _ in range(INTERIM_RESPONSES + 50):
            peer.h2.send_headers(1, [(":status", "103"), *[large] * 15])
        await peer.flush()
        await peer.until(StreamReset, 1)
        heads = await near.receive()
        assert heads.count(b"HTTP/1.1 103") == INTERIM_RESPONSES
        with pytest.raises(StreamError, match="too many interim responses"):
            await near.receive()
        near.abort()
        assert client.idle


async def test_no_stream_begins_after_goaway(anyio_backend: object) -> None:
    """A server does not answer it: who waited for a place would wait until `response_head_timeout`."""
    async with connected() as (client, peer):
        peer.h2.update_settings({3: 1})
        await peer.flush()
        first = client.call()
        await first.send(HEAD % 1 + b"body")
        await peer.until(StreamEnded, 1)
        second = client.call()
        await second.send(HEAD % 2 + b"body")
        await peer.flush(GoAwayFrame(0, last_stream_id=1).serialize())
        peer.h2.send_headers(1, [(":status", "204")], end_stream=True)
        await peer.flush()
        with anyio.fail_after(5), pytest.raises(StreamError, match="going away"):
            await second.receive()
        assert (await first.receive()).startswith(b"HTTP/1.1 204")
        late = client.call()
        with pytest.raises(StreamError, match="going away"):
            await late.send(HEAD % 3)
        first.abort()
        await anyio.sleep(0.05)
        assert peer.paths() == ["/1"]
        assert client.idle
