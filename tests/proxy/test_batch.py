"""Sends of streams that were woken together: what is put off, for how long, and what comes before what."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from unittest.mock import Mock

import anyio
import pytest

from moat.proxy.batch import MOST, SMALL, Batch
from moat.proxy.stream import Stream, StreamError, Watch, open_stream
from moat.proxy.stream_asyncio import AsyncioStream
from tests.proxy.conftest import LOOPS

pytestmark = pytest.mark.anyio
Pair = tuple[Stream, socket.socket]
Then = Callable[[Stream], Awaitable[None]]


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return LOOPS[request.param]


@pytest.fixture
async def pairs(anyio_backend: object) -> AsyncIterator[tuple[Pair, Pair]]:
    """Two streams of one proxy, and their peers (not blocking)."""
    watch, made = Watch(), []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            peer = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
        ours.setblocking(False)
        peer.setblocking(False)
        made.append((await open_stream(ours, watch), peer))
    await anyio.sleep(0.01)
    yield made[0], made[1]
    for stream, peer in made:
        await stream.aclose()
        peer.close()
    await anyio.sleep(0.01)
    assert not watch.batch.woken
    assert not watch.batch.held


def arrived(peer: socket.socket) -> bytes:
    """What the peer's kernel has by now."""
    try:
        return peer.recv(1 << 20, socket.MSG_PEEK)
    except BlockingIOError:
        return b""


async def go_on(stream: Stream, then: Then) -> None:
    await stream.receive()
    await then(stream)


async def together(pairs: tuple[Pair, Pair], first: Then, second: Then) -> None:
    """Wake the readers of both in one turn of the loop."""
    async with anyio.create_task_group() as tasks:
        for (stream, _), then in zip(pairs, (first, second), strict=True):
            tasks.start_soon(go_on, stream, then)
        await anyio.sleep(0.01)
        for _, peer in pairs:
            peer.send(b"go")


async def nothing(_stream: Stream) -> None:
    pass


async def test_who_is_woken_alone_sends_at_once(pairs: tuple[Pair, Pair]) -> None:
    (stream, peer), _ = pairs
    for _ in range(3):
        peer.send(b"go")
        await stream.receive()
        await stream.send(b"answer")
        assert arrived(peer) == b"answer"
        peer.recv(100)


async def test_what_is_sent_first_leaves_when_the_last_has_gone_on(pairs: tuple[Pair, Pair]) -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def answer(stream: Stream) -> None:
        await stream.send(b"answer")
        seen.append((arrived(pairs[0][1]), arrived(pairs[1][1])))

    await together(pairs, answer, answer)
    # Which of them goes on first is the loop's to say.
    assert seen == [(b"", b""), (b"answer", b"answer")]


async def test_it_leaves_soon_although_the_other_does_not_send(
    pairs: tuple[Pair, Pair],
) -> None:
    async def answer(stream: Stream) -> None:
        await stream.send(b"answer")

    async def wait(_stream: Stream) -> None:
        while not arrived(pairs[0][1]):
            await anyio.sleep(0.001)

    with anyio.fail_after(5):
        await together(pairs, answer, wait)


async def test_a_large_piece_is_not_put_off(pairs: tuple[Pair, Pair]) -> None:
    async def answer(stream: Stream) -> None:
        await stream.send(b"x" * (SMALL + 1))
        assert arrived(pairs[0][1])

    await together(pairs, answer, nothing)


async def test_after_a_large_piece_nothing_is_put_off(pairs: tuple[Pair, Pair]) -> None:
    """Not by the stream that it came to, and not until that one has gone on by any other."""
    peers = dict(pairs)

    async def answer(stream: Stream) -> None:
        await stream.send(b"answer")
        assert arrived(peers[stream]) == b"answer"

    async def bulk() -> None:
        await anyio.sleep(0.01)
        for (stream, _), data in zip(pairs, (b"go", b"x" * (SMALL + 1)), strict=True):
            assert isinstance(stream, AsyncioStream)
            stream.data_received(data)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bulk)
        for stream, _ in pairs:
            tasks.start_soon(go_on, stream, answer)


async def test_what_comes_after_a_large_piece_overtakes_nothing(pairs: tuple[Pair, Pair]) -> None:
    async def answer(stream: Stream) -> None:
        assert isinstance(stream, AsyncioStream)
        await stream.send(b"answer")
        assert arrived(pairs[0][1]) == b""
        stream.data_received(b"x" * (SMALL + 1))
        await stream.send(b", more")
        assert arrived(pairs[0][1]) == b"answer, more"

    await together(pairs, answer, nothing)


async def test_only_so_many_pieces_wait(anyio_backend: object) -> None:
    """One more takes all with it, and comes after them."""
    batch, written = Batch(), list[bytes]()
    loop = asyncio.get_running_loop()

    def transport() -> asyncio.Transport:
        made = Mock(spec=asyncio.Transport)
        made.is_closing.return_value = False
        made.write = written.append
        return made

    batch.woken.add(None)
    assert all(batch.hold(loop, transport(), b"%d" % number) for number in range(MOST))
    assert written == []
    assert not batch.hold(loop, transport(), b"last")
    assert written == [b"%d" % number for number in range(MOST)]


async def finish(stream: Stream) -> None:
    await stream.send_eof()


async def close(stream: Stream) -> None:
    stream.close()


async def aclose(stream: Stream) -> None:
    await stream.aclose()


async def abort(stream: Stream) -> None:
    stream.abort()


async def send(stream: Stream) -> None:
    await stream.send(b", more")


@pytest.mark.parametrize(
    ("then", "rest"), [(finish, b""), (close, b""), (aclose, b""), (abort, b""), (send, b", more")]
)
async def test_whatever_comes_next_comes_after_it(pairs: tuple[Pair, Pair], then: Then, rest: bytes) -> None:
    async def answer(stream: Stream) -> None:
        await stream.send(b"answer")
        assert arrived(pairs[0][1]) == b""
        await then(stream)

    await together(pairs, answer, nothing)
    peer = pairs[0][1]
    got = b""
    with anyio.move_on_after(0.2), contextlib.suppress(ConnectionResetError):
        while True:
            with contextlib.suppress(BlockingIOError):
                if not (data := peer.recv(100)):
                    break
                got += data
            await anyio.sleep(0.01)
    assert got == b"answer" + rest


async def test_a_reader_that_is_cancelled_when_it_was_woken_holds_up_nobody(pairs: tuple[Pair, Pair]) -> None:
    (first, _), (second, other) = pairs
    assert isinstance(first, AsyncioStream)
    other.send(b"go")
    await second.receive()
    reader = asyncio.create_task(first.receive())
    await anyio.sleep(0.01)
    first.data_received(b"go")  # its reader is to go on in the next turn
    reader.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await reader
    await second.send(b"one")
    assert arrived(other) == b""
    await anyio.sleep(0.01)
    assert arrived(other) == b"one"
    assert await first.receive() == b"go"


async def test_a_piece_of_a_stream_that_has_finished_takes_no_other_with_it(pairs: tuple[Pair, Pair]) -> None:
    async def wrong(stream: Stream) -> None:
        await stream.send_eof()
        with contextlib.suppress(StreamError, RuntimeError):
            await stream.send(b"too late")

    async def answer(stream: Stream) -> None:
        await stream.send(b"answer")

    await together(pairs, wrong, answer)
    await anyio.sleep(0.01)
    assert arrived(pairs[1][1]) == b"answer"
    assert arrived(pairs[0][1]) == b""
