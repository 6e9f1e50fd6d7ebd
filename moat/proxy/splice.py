"""Bytes from socket to socket that do not pass through this process: Linux moves them by way of a pipe."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel

from moat.proxy.stream import broken

POSSIBLE = hasattr(os, "splice")
_PIPE = 256 * 1024  # bytes; more would count against what a user's pipes may take together
_TURN = 1 << 20  # bytes after which others get their turn, however quick both peers are


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
        while size := await _move(source.fileno(), entering, _PIPE, anyio.wait_readable, source):
            on_moved(size)
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
