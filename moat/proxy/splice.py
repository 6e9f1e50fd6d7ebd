"""Bytes from socket to socket that do not pass through this process: Linux moves them by way of a pipe."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Awaitable, Callable
from time import monotonic

import anyio
import anyio.lowlevel

from moat.proxy.stream import broken

POSSIBLE = hasattr(os, "splice")
_PIPE = 256 * 1024  # bytes; more would count against what a user's pipes may take together
_TURN = 1 << 20  # bytes after which others get their turn, however quick both peers are
_BULK = 8 * 1024  # bytes; what comes in smaller pieces may be somebody's question, and is never kept waiting
_HASTE = 0.003  # s; pieces that come sooner after one another are counted as a row
_ROW = 8  # pieces
_REST = 0.001  # s; the most that the last piece of a row comes later for it


async def splice(source: socket.socket, sink: socket.socket, on_moved: Callable[[int], object]) -> None:
    """Move everything until `source` has finished, telling each number of bytes. Raises StreamError."""
    try:
        leaving, entering = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:  # no descriptor is left
        raise broken(error) from error
    try:
        with contextlib.suppress(OSError):  # who has many pipes gets small ones
            fcntl.fcntl(entering, fcntl.F_SETPIPE_SZ, _PIPE)
        turn = 0
        pieces = _Pieces()
        while size := await _move(source.fileno(), entering, _PIPE, pieces.wait, source):
            on_moved(size)
            pieces.size += size
            turn += size
            while size:
                size -= await _move(leaving, sink.fileno(), size, anyio.wait_writable, sink)
            if turn >= _TURN:
                turn = 0
                await anyio.lowlevel.checkpoint()
    except OSError as error:
        raise broken(error) from error
    finally:
        os.close(leaving)
        os.close(entering)


class _Pieces:
    """What comes between two waits for the source.

    Looking for each TLS record (16 KiB) of a quick sender by itself costs up to four times the CPU of looking
    a millisecond later, for all that has come by then (two modes: `benchmarks/README.md`).
    """

    def __init__(self) -> None:
        self.size = 0  # bytes since the last wait
        self._row = 0
        self._waited = 0.0

    async def wait(self, source: socket.socket) -> None:
        now = monotonic()
        bulk = _BULK <= self.size < _PIPE and now - self._waited < _HASTE
        self._row = self._row + 1 if bulk else 0
        self._waited, self.size = now, 0
        if self._row >= _ROW:
            await anyio.sleep(_REST)
        await anyio.wait_readable(source)


async def _move(
    source: int,
    sink: int,
    size: int,
    possible: Callable[[socket.socket], Awaitable[None]],
    peer: socket.socket,
) -> int:
    """Up to `size` bytes; 0: the source has finished. `possible` waits for the one end that is a socket."""
    while True:
        try:
            return os.splice(source, sink, size, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)
        except BlockingIOError:
            await possible(peer)
