"""Waiting awake: for whom, how long, and how seldom for somebody who is not there at once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from time import process_time

import anyio
import anyio.lowlevel
import pytest

from moat.proxy import busy_poll
from moat.proxy.busy_poll import CROWDED_SECONDS, MOST_PASSED, SECONDS, BusyPoll, Peer
from moat.proxy.stream import Stream, Watch, open_stream
from moat.proxy.stream_asyncio import AsyncioStream
from tests.proxy.conftest import LOOPS

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return LOOPS[request.param]


@pytest.fixture
async def pair(anyio_backend: object) -> AsyncIterator[tuple[AsyncioStream, socket.socket, BusyPoll]]:
    """A stream of a proxy, its peer (not blocking), and what waits for peers."""
    watch = Watch()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    ours.setblocking(False)
    peer.setblocking(False)
    stream = await open_stream(ours, watch)
    assert isinstance(stream, AsyncioStream)
    yield stream, peer, watch.poll
    await stream.aclose()
    peer.close()


async def exchange(stream: Stream, peer: socket.socket) -> None:
    """The peer asks, and is answered."""
    async with anyio.create_task_group() as tasks:

        async def answer() -> None:
            await stream.receive()
            await stream.send(b"answer")

        tasks.start_soon(answer)
        await anyio.lowlevel.checkpoint()
        peer.send(b"request")


async def over(poll: BusyPoll) -> None:
    """Until nobody is waited for."""
    with anyio.fail_after(2):
        while poll.awaited is not None:
            await asyncio.sleep(0)


async def test_a_peer_that_sends_at_once_is_waited_for_awake(
    pair: tuple[AsyncioStream, socket.socket, BusyPoll], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(busy_poll, "SECONDS", 10)  # this machine may be busy for longer
    stream, peer, poll = pair
    for _ in range(20):
        await exchange(stream, peer)
        assert poll.awaited is stream._peer
        peer.send(b"more")
        assert await stream.receive() == b"more"
        assert poll.awaited is None
    assert stream._peer.misses == 0


async def test_a_peer_that_takes_its_time_is_waited_for_ever_more_seldom(
    pair: tuple[AsyncioStream, socket.socket, BusyPoll],
) -> None:
    """2,000 sends: some ten waits, and not 0.4 s of CPU."""
    stream, peer, poll = pair
    for _ in range(2000):
        await exchange(stream, peer)
        await over(poll)
    assert 8 <= stream._peer.misses <= 16  # one for each wait


async def test_a_wait_ends_by_itself(pair: tuple[AsyncioStream, socket.socket, BusyPoll]) -> None:
    stream, peer, poll = pair
    await exchange(stream, peer)
    before = process_time()
    await anyio.sleep(0.2)
    assert poll.awaited is None
    assert stream._peer.misses == 1
    assert process_time() - before < 0.1


async def test_an_answer_makes_up_for_what_was_missed(
    pair: tuple[AsyncioStream, socket.socket, BusyPoll], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, peer, poll = pair
    for _ in range(50):
        await exchange(stream, peer)
        await over(poll)
    assert stream._peer.passes
    stream._peer.passes = 0
    monkeypatch.setattr(busy_poll, "SECONDS", 10)
    await exchange(stream, peer)
    peer.send(b"at once")
    await stream.receive()
    assert stream._peer.misses == 0
    await exchange(stream, peer)
    assert poll.awaited is stream._peer
    peer.send(b"at once")
    await stream.receive()


async def test_nobody_is_waited_for_awake_while_several_are_to_answer() -> None:
    loop, poll, peers = asyncio.get_running_loop(), BusyPoll(), [Peer(), Peer(), Peer()]
    for peer in peers:
        poll.begin(loop, peer)
    assert poll.awaited is None
    assert [peer.misses for peer in peers] == [0, 0, 0]
    await asyncio.sleep(CROWDED_SECONDS * 2)
    poll.begin(loop, peers[0])
    assert poll.awaited is peers[0]  # no turn of the loop in between
    await over(poll)


async def test_who_is_sent_two_pieces_is_one_peer() -> None:
    loop, poll, peer = asyncio.get_running_loop(), BusyPoll(), Peer()
    poll.begin(loop, peer)
    poll.begin(loop, peer)
    assert poll.awaited is peer
    await over(poll)
    assert peer.misses == 1


async def test_how_many_sends_pass_has_a_bound() -> None:
    peer = Peer()
    for misses in range(1000):
        peer.expect(misses)
    assert peer.passes == MOST_PASSED
    assert SECONDS / MOST_PASSED < 2e-6


async def test_a_new_peer_is_expected_to_be_like_the_last() -> None:
    """Programs that make a connection for each request must not pay for the first sends of each."""
    loop, poll, waits = asyncio.get_running_loop(), BusyPoll(), 0
    for _ in range(200):
        peer = poll.peer()
        poll.begin(loop, peer)
        waits += poll.awaited is not None
        await over(poll)
    assert 1 <= waits <= 3
    poll.answered(peer)
    poll.begin(loop, poll.peer())
    assert poll.awaited is not None
    await over(poll)
