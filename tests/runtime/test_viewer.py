"""A connected viewer: order, the bound on what waits, and what becomes of who is too slow or gone."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel
import pytest

from moat.runtime.control import Decoder, Frame, unpack_json
from moat.runtime.questions import Asked
from moat.runtime.sandbox import Output
from moat.runtime.viewer import BEHIND, SocketViewer

pytestmark = pytest.mark.anyio
PIECE = 65536


@pytest.fixture
async def pair() -> AsyncIterator[tuple[SocketViewer, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    _, writer = await asyncio.open_unix_connection(sock=ours)
    with theirs:
        yield SocketViewer(writer, size=None), theirs
    writer.transport.abort()


async def take(theirs: socket.socket, size: int) -> list[tuple[Frame, bytes]]:
    """The frames of the next `size` bytes of payload, or of all until the other side hangs up."""
    decoder, frames = Decoder(), []
    while sum(len(payload) for _, payload in frames) < size:
        data = await asyncio.get_running_loop().sock_recv(theirs, 1 << 16)
        if not data:
            break
        frames += decoder.feed(data)
    return frames


async def flood(viewer: SocketViewer, pieces: int) -> None:
    for number in range(pieces):
        viewer.offer(Output("stdout", bytes([number % 256]) * PIECE))
        try:
            with anyio.fail_after(viewer.patience):
                await viewer.caught_up()
        except TimeoutError:
            viewer.skip()
        await anyio.lowlevel.checkpoint()


async def test_everything_in_order(pair: tuple[SocketViewer, socket.socket]) -> None:
    viewer, theirs = pair
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(viewer.deliver)
        tasks.start_soon(flood, viewer, 300)
        frames = await take(theirs, 300 * PIECE)
        tasks.cancel_scope.cancel()
    assert b"".join(data for _, data in frames) == b"".join(bytes([n % 256]) * PIECE for n in range(300))


async def test_who_takes_nothing_costs_a_moment_and_a_bounded_memory(
    pair: tuple[SocketViewer, socket.socket],
) -> None:
    """100 MB go by. Seen failing with `skip` doing nothing: memory and time grow with the output."""
    viewer, theirs = pair
    missed: list[int] = []

    async def deliver() -> None:
        missed.append(await viewer.deliver())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(deliver)
        with anyio.fail_after(5):
            await flood(viewer, 1600)
        assert viewer._queued <= BEHIND
        taken = asyncio.create_task(take(theirs, 1600 * PIECE))
        while not missed:
            await anyio.sleep(0.01)
        viewer.show(b"all of it")
        viewer.leave("enough")
        frames = await taken
    assert sum(len(data) for kind, data in frames if kind is Frame.STDOUT) + missed[0] >= 1600 * PIECE
    assert frames[-2:] == [(Frame.SCREEN, b"all of it"), (Frame.LEFT, b"enough")]


async def test_who_takes_a_little_at_a_time_is_not_waited_for_each_time(
    pair: tuple[SocketViewer, socket.socket],
) -> None:
    """4 KiB every 20 ms: a run that waited for each of them would print at 200 KB/s."""
    viewer, theirs = pair

    async def sip() -> None:
        while True:
            await asyncio.get_running_loop().sock_recv(theirs, 4096)
            await anyio.sleep(0.02)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(viewer.deliver)
        tasks.start_soon(sip)
        with anyio.fail_after(5):
            for _ in range(1000):
                viewer.offer(Output("stdout", b"x" * 4096))
                try:
                    with anyio.fail_after(viewer.patience):
                        await viewer.caught_up()
                except TimeoutError:
                    viewer.skip()
        tasks.cancel_scope.cancel()


async def test_of_questions_the_newest_waits_for_who_takes_nothing(
    pair: tuple[SocketViewer, socket.socket],
) -> None:
    """A run that prints nothing skips nobody: each change of what it asks stayed in memory, ten in a second."""
    viewer, theirs = pair
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(viewer.deliver)
        for _ in range(12):
            viewer.offer(Output("stdout", bytes(PIECE)))
            await anyio.lowlevel.checkpoint()
        for number in range(2000):
            viewer.ask([Asked("a.test", 443, "https", "GET", "/" + "a" * 199, 0.0, number)])
            await anyio.lowlevel.checkpoint()
        viewer.offer(Output("stdout", b"end"))
        frames = await take(theirs, 12 * PIECE + 300)
        tasks.cancel_scope.cancel()
    asked = [
        unpack_json(payload)["waiting"][0]["requests"] for kind, payload in frames if kind is Frame.ASKED
    ]
    assert asked == [1999]
    assert frames[-1] == (Frame.STDOUT, b"end")


async def test_who_is_gone(pair: tuple[SocketViewer, socket.socket]) -> None:
    viewer, theirs = pair
    theirs.close()
    with pytest.raises(ConnectionError):
        await flood(viewer, 100)


async def test_who_goes_while_the_run_waits_for_them(pair: tuple[SocketViewer, socket.socket]) -> None:
    viewer, theirs = pair
    viewer.patience = None

    async def vanish() -> None:
        await anyio.sleep(0.1)
        theirs.close()

    async def deliver() -> None:
        with pytest.raises(ConnectionError):
            await viewer.deliver()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(deliver)
            tasks.start_soon(vanish)
            with pytest.raises(ConnectionError):
                await flood(viewer, 100)
