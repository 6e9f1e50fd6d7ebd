"""Accepting connections, no more at one time than there are slots for."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import anyio

from moat.proxy.stream_asyncio import running_loop

if TYPE_CHECKING:
    import asyncio

_TRY_AGAIN_SECONDS = 0.2  # after running out of file descriptors or memory
# accept() fails with these although the listener is well: the peer has already left, or resources are short.
_PEER_LEFT = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.EHOSTUNREACH})
_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

Begin = Callable[[socket.socket], object]


async def accept(listener: socket.socket, slots: anyio.Semaphore, begin: Begin) -> None:
    """Accept for ever. With all slots taken nothing is accepted: clients wait in the backlog.

    `begin` starts what serves a connection (non-blocking), which gives the slot back when it ends.
    """
    loop = running_loop()
    while True:
        await slots.acquire()
        try:
            accepted = await next_of(listener)
        except BaseException:
            slots.release()
            raise
        begin(accepted)
        if loop is not None:
            await _accept_while_free(loop, listener, slots, begin)


async def next_of(listener: socket.socket) -> socket.socket:
    """The next connection, non-blocking. Raises OSError for what is the listener's own fault, only."""
    while True:
        try:
            return _now(listener)
        except BlockingIOError:
            await anyio.wait_readable(listener)
        except OSError as error:
            if error.errno in _SHORT:
                # Accepting would fail until something is closed, and the listener stays readable.
                await anyio.sleep(_TRY_AGAIN_SECONDS)
            elif error.errno not in _PEER_LEFT:
                raise


def _now(listener: socket.socket) -> socket.socket:
    accepted, _ = listener.accept()
    accepted.setblocking(False)
    return accepted


async def _accept_while_free(
    loop: asyncio.AbstractEventLoop, listener: socket.socket, slots: anyio.Semaphore, begin: Begin
) -> None:
    """Accept in the loop's own callback until there is no slot, or accepting fails.

    The listener stays registered: waiting for it anew costs seven system calls for each connection.
    """
    over, descriptor = loop.create_future(), listener.fileno()
    loop.add_reader(descriptor, partial(_take, listener, slots, begin, over))
    try:
        await over
    finally:
        loop.remove_reader(descriptor)


def _take(listener: socket.socket, slots: anyio.Semaphore, begin: Begin, over: asyncio.Future[None]) -> None:
    while not over.done():
        try:
            slots.acquire_nowait()
        except anyio.WouldBlock:
            over.set_result(None)
            return
        try:
            accepted = _now(listener)
        except BlockingIOError:
            slots.release()
            return
        except OSError:  # `next_of` meets it again, and knows which of them matter
            slots.release()
            over.set_result(None)
            return
        begin(accepted)
