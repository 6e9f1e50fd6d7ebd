"""What the kernel moves: everything, and in pieces that are worth a look."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import anyio
import pytest

from moat.proxy import splice as module
from moat.proxy.splice import splice

pytestmark = pytest.mark.anyio
Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[tuple[Ends, Ends]]:
    """Sender and source, sink and receiver."""
    first, second = socket.socketpair(), socket.socketpair()
    for end in (*first, *second):
        end.setblocking(False)
    yield first, second
    for end in (*first, *second):
        end.close()


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made. However slow this machine is, one piece comes soon after the other."""
    made: list[float] = []

    async def rest(seconds: float) -> None:
        made.append(seconds)
        await anyio.lowlevel.checkpoint()

    monkeypatch.setattr(module, "_HASTE", 60.0)
    monkeypatch.setattr(module.anyio, "sleep", rest)
    return made


async def received(receiver: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        await anyio.wait_readable(receiver)
        data += receiver.recv(size - len(data))
    return data


async def pass_on(ends: tuple[Ends, Ends], piece: bytes, times: int) -> int:
    """Pieces, each sent when the one before has arrived. How many bytes were told."""
    (sender, source), (sink, receiver) = ends
    told: list[int] = []
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(splice, source, sink, told.append)
            for _ in range(times):
                sender.send(piece)
                assert await received(receiver, len(piece)) == piece
            sender.shutdown(socket.SHUT_WR)
    return sum(told)


async def test_a_transfer_in_small_pieces_is_given_time_to_fill(ends, rests) -> None:
    assert await pass_on(ends, b"0123456789abcdef" * 1024, 30) == 30 * 16 * 1024
    assert rests
    assert set(rests) == {0.001}


async def test_questions_and_answers_are_never_kept_waiting(ends, rests) -> None:
    assert await pass_on(ends, b"x" * 1024, 100) == 100 * 1024
    assert rests == []


async def test_what_fills_the_pipe_needs_no_rest(ends, rests, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIPE", 16 * 1024)
    assert await pass_on(ends, b"x" * 16 * 1024, 30) == 30 * 16 * 1024
    assert rests == []


async def test_a_pause_between_pieces_ends_the_row(ends, rests, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HASTE", 0.0)
    assert await pass_on(ends, b"x" * 16 * 1024, 30) == 30 * 16 * 1024
    assert rests == []
