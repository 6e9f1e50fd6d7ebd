"""Tasks of connections: cancelled as anyio cancels, whoever it is that does it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial

import anyio
import pytest

from moat.proxy.accepting import accept
from moat.proxy.connection_tasks import connection_tasks

LOOPS = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}


@pytest.fixture(params=list(LOOPS))
def run(request: pytest.FixtureRequest) -> Callable[..., object]:
    return partial(anyio.run, **LOOPS[request.param])


def test_all_have_ended_when_the_block_is_left(run: Callable[..., object]) -> None:
    ended: list[int] = []

    async def connection(number: int) -> None:
        await anyio.sleep(0.01 * number)
        ended.append(number)

    async def story() -> None:
        async with connection_tasks() as start:
            for number in (2, 0, 1):
                start(connection(number))
        assert ended == [0, 1, 2]

    run(story)


def test_who_is_cancelled_stays_so(run: Callable[..., object]) -> None:
    """A clean-up that waits ends at once, at every wait; so does a group that a connection has opened."""
    waits: list[str] = []

    async def stubborn() -> None:
        try:
            await anyio.sleep(60)
        finally:
            waits.append("first")
            try:
                await anyio.sleep(60)
            finally:
                waits.append("second")
                await anyio.sleep(60)

    async def connection() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(stubborn)
            await stubborn()

    async def story() -> None:
        with anyio.fail_after(10), anyio.CancelScope() as scope:
            async with connection_tasks() as start:
                start(connection())
                await anyio.sleep(0.05)
                scope.cancel()
        assert waits.count("first") == waits.count("second") == 2

    run(story)


@pytest.mark.parametrize("begun", [True, False])
def test_an_error_of_the_listener_ends_the_connections(run: Callable[..., object], begun: bool) -> None:
    """One that has not begun gets to its clean-up all the same: it owns a socket."""
    closed: list[int] = []

    async def connection() -> None:
        try:
            await anyio.sleep(60)
        finally:
            closed.append(1)

    async def failing() -> None:
        async with connection_tasks() as start:
            start(connection())
            if begun:
                await anyio.sleep(0.01)
            raise OSError(0, "of the listener")

    async def story() -> None:
        with pytest.raises((OSError, BaseExceptionGroup)):
            await failing()
        assert closed == [1]

    run(story)


def test_no_more_are_accepted_than_there_are_slots_for(run: Callable[..., object]) -> None:
    """The others wait in the backlog, and the listener is not looked at in a circle meanwhile."""
    taken: list[socket.socket] = []

    async def story() -> None:
        slots = anyio.Semaphore(2, fast_acquire=True)
        with socket.create_server(("127.0.0.1", 0)) as listener, anyio.CancelScope() as scope:
            listener.setblocking(False)
            clients = [socket.create_connection(listener.getsockname()) for _ in range(5)]
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(accept, listener, slots, taken.append)
                await anyio.sleep(0.05)
                assert len(taken) == 2
                slots.release()
                await anyio.sleep(0.05)
                assert len(taken) == 3
                for _ in range(5):
                    slots.release()
                await anyio.sleep(0.05)
                assert len(taken) == 5
                scope.cancel()
        for each in clients + taken:
            each.close()
        assert slots.value == 3

    run(story)
