"""The egress channel of a run: the proxy, joined with listeners that only its sandbox can reach.

docker    a unix socket in the run's own directory, which is bound into the container
embedded  sockets that were bound inside the sandbox's network namespace and handed out of it
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from moat.authority import Authority, AuthorityError, parse_authority
from moat.runtime.dnsstub import MAX_QUERY, NameTable, answer
from moat.runtime.sandbox import HOST_ADDRESS, HOST_NAME, EgressSockets

if TYPE_CHECKING:
    from moat.proxy.server import Proxy

Start = Callable[[str, Callable[[], Awaitable[Any]]], None]  # (what it is, the task): owned by the run
_BACKLOG = 128


class RunEgress:
    """Implements `sandbox.Egress`. Its methods return when the listeners are served by tasks of the run."""

    def __init__(self, proxy: Callable[[], Proxy], start: Start) -> None:
        """`proxy` is called at the first connection, and at every later one to another listener."""
        self._proxy = proxy
        self._start = start
        self._names = NameTable({HOST_NAME: HOST_ADDRESS})

    async def serve_unix(self, path: Path, uid: int) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        mask = os.umask(0o177)  # no instant in which the socket is open to others
        try:
            sock.bind(str(path))
        finally:
            os.umask(mask)
        if uid != os.geteuid():
            os.chown(path, uid, -1, follow_symlinks=False)
        sock.listen(_BACKLOG)
        self._serve("proxy", sock, lambda proxy: proxy.serve(sock))

    async def serve_sockets(self, sockets: EgressSockets) -> None:
        explicit = _listener(sockets.proxy)
        self._serve("proxy", explicit, lambda proxy: proxy.serve(explicit))
        for fd in (sockets.http, sockets.https, *sockets.captured):
            self._capture(_listener(fd))
        for port, fd in sockets.host_ports:
            self._host_port(_listener(fd), port)
        names = _listener(sockets.dns)
        self._start("dns", lambda: _resolve(names, self._names))

    def _capture(self, sock: socket.socket) -> None:
        self._serve("capture", sock, lambda proxy: proxy.serve_captured(sock, self._meant))

    def _host_port(self, sock: socket.socket, port: int) -> None:
        authority = Authority(HOST_NAME, port)
        self._serve("host port", sock, lambda proxy: proxy.serve(sock, authority=authority))

    def _serve(self, what: str, sock: socket.socket, serve: Callable[[Proxy], Awaitable[None]]) -> None:
        async def when_asked() -> None:
            with sock:
                await anyio.wait_readable(sock)  # the first connection stays in the backlog meanwhile
                await serve(self._proxy())

        self._start(what, when_asked)

    def _meant(self, accepted: socket.socket) -> Authority | None:
        """Which name a captured connection was made for: the address it was made to tells."""
        address, port = accepted.getsockname()[:2]
        name = self._names.name(address)
        if name is None:
            return None
        try:
            return parse_authority(f"{name}:{port}")
        except AuthorityError:
            return None


def _listener(fd: int) -> socket.socket:
    """A listening socket that came in as a descriptor, which it now owns."""
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    return sock


async def _resolve(sock: socket.socket, names: NameTable) -> None:
    """Answer name queries until cancelled. Nothing is ever looked up elsewhere."""
    with sock:
        while True:
            await anyio.wait_readable(sock)
            with contextlib.suppress(OSError):  # nothing there after all, or a sender that has left
                query, sender = sock.recvfrom(MAX_QUERY + 1)
                reply = answer(query, names)
                if reply is not None:
                    sock.sendto(reply, sender)
