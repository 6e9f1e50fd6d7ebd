"""Accepting connections, no more at one time than there are slots for."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

import anyio

_TRY_AGAIN_SECONDS = 0.2  # after running out of file descriptors or memory
# accept() fails with these although the listener is well: the peer has already left, or resources are short.
_PEER_LEFT = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.EHOSTUNREACH})
_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


async def accept(
    listener: socket.socket, slots: anyio.Semaphore, begin: Callable[[socket.socket], object]
) -> None:
    """Accept for ever. With all slots taken nothing is accepted: clients wait in the backlog.

    `begin` starts what serves a connection (non-blocking), which gives the slot back when it ends.
    """
    while True:
        await slots.acquire()
        try:
            accepted = await next_of(listener)
        except BaseException:
            slots.release()
            raise
        begin(accepted)


async def next_of(listener: socket.socket) -> socket.socket:
    """The next connection, non-blocking. Raises OSError for what is the listener's own fault, only."""
    while True:
        try:
            accepted, _ = listener.accept()
        except BlockingIOError:
            await anyio.wait_readable(listener)
        except OSError as error:
            if error.errno in _SHORT:
                # Accepting would fail until something is closed, and the listener stays readable.
                await anyio.sleep(_TRY_AGAIN_SECONDS)
            elif error.errno not in _PEER_LEFT:
                raise
        else:
            accepted.setblocking(False)
            return accepted
