"""A TCP connection to a numeric address, as a stream."""

from __future__ import annotations

import socket

import anyio

from moat.proxy.stream import Stream, StreamTimeoutError, Watch, broken, open_stream, reason


async def connect(address: tuple[str, int], watch: Watch, *, timeout: float) -> Stream:
    """Connect to a numeric address. Raises StreamError ("connection refused") or StreamTimeoutError."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP)
    except OSError as error:
        raise broken(error) from error
    try:
        with anyio.fail_after(timeout):
            await _connected(sock, address)
    except TimeoutError as error:
        sock.close()
        raise StreamTimeoutError("connection timed out") from error
    except OSError as error:
        sock.close()
        raise broken(error) from error
    except BaseException:
        sock.close()
        raise
    _ask_whether_alive(sock)
    return await open_stream(sock, watch)


def _ask_whether_alive(sock: socket.socket) -> None:
    """A stream of events has no deadline; the kernel finds out within three minutes when its peer is gone."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


async def _connected(sock: socket.socket, address: tuple[str, int]) -> None:
    try:
        sock.connect(address)
    except BlockingIOError:
        await anyio.wait_writable(sock)
    if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(code, reason(code))
