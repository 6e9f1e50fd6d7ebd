"""The run's side: one unix socket per endpoint, each joined with a server in the sandbox.

The sockets lie in the run's private directory (0700), which no sandbox sees; whoever connects must also be
the same user. A connection is answered with one line, `+` or `-` and the reason, and then with the server's
own bytes. Only the ports that the run declares can be dialled: a socket belongs to one port.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio

from moat.paths import private_dir
from moat.proxy.accepting import accept
from moat.proxy.relay import Traffic, relay
from moat.proxy.stream import Stream, StreamError, Watch, open_stream
from moat.runtime.endpoints.routes import Endpoint
from moat.runtime.sandbox import Sandbox

CONNECTED, FAILED = b"+", b"-"  # the first byte of the answer; a reason follows FAILED, a line end both
WORD = 200  # bytes of the answer at most
_CONNECTIONS = 512  # of one run at one time; a browser opens six to a host, and WebSockets besides
_IDLE = 86400.0  # seconds; both ends are on this machine, so a dead one is noticed at once
_BACKLOG = 128
_log = logging.getLogger(__name__)

Start = Callable[[str, Callable[[], Awaitable[Any]]], None]  # (what it is, the task): owned by the run


class Ingress:
    def __init__(self, directory: Path) -> None:
        """`directory`: short, private, of this run alone; made here."""
        self._directory = private_dir(directory)
        self._listeners: list[tuple[socket.socket, int]] = []  # with the port in the sandbox
        self._sandbox: Sandbox | None = None
        self._watch = Watch()
        self._slots = anyio.Semaphore(_CONNECTIONS)
        self._serving: anyio.CancelScope | None = None

    def open(self, name: str, port: int) -> Endpoint:
        """Listen for connections to `port` of the sandbox."""
        path = self._directory / f"{len(self._listeners)}.sock"  # a name may be too long for a socket's path
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.bind(str(path))
        os.chmod(path, 0o600)
        sock.listen(_BACKLOG)
        self._listeners.append((sock, port))
        _log.info("endpoint %s: port %d", name, port)
        return Endpoint(port, str(path))

    def use(self, sandbox: Sandbox) -> None:
        """From here on connections reach `sandbox`; before, they are told that there is none."""
        self._sandbox = sandbox

    async def serve(self) -> None:
        """Serve every listener until cancelled or closed."""
        try:
            with anyio.CancelScope() as self._serving:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._watch.run)
                    for sock, port in self._listeners:
                        tasks.start_soon(self._accept, sock, port)
        finally:
            self._close_listeners()

    def close(self) -> None:
        """End every connection and listen no more."""
        self._sandbox = None
        if self._serving:
            self._serving.cancel()  # who waits for a listener must have left before it is closed
        else:
            self._close_listeners()
        self._watch.abort_all()

    def _close_listeners(self) -> None:
        for sock, _ in self._listeners:
            sock.close()
        self._listeners.clear()

    async def _accept(self, listener: socket.socket, port: int) -> None:
        async with anyio.create_task_group() as connections:
            await accept(
                listener,
                self._slots,
                lambda accepted: connections.start_soon(self._connection, accepted, port),
            )

    async def _connection(self, sock: socket.socket, port: int) -> None:
        """One connection. What goes wrong in it ends it, and nothing else."""
        try:
            if _peer_uid(sock) not in {0, os.getuid()}:
                sock.close()
                return
            stream = await open_stream(sock, self._watch)
            try:
                await self._join(stream, port)
                await stream.aclose()
            finally:
                stream.abort()
        except (StreamError, OSError):
            pass  # somebody left
        except Exception:  # a mistake of ours must not end the run
            _log.exception("a connection to port %d ended by an error in moat", port)
        finally:
            self._slots.release()

    async def _join(self, stream: Stream, port: int) -> None:
        sandbox = self._sandbox
        if sandbox is None:
            await stream.send(FAILED + b"the sandbox is not ready yet\n")
            return
        try:
            dialled = await sandbox.dial(port)
        except OSError as error:
            await stream.send(FAILED + _reason(error).encode() + b"\n")
            return
        server = await open_stream(dialled, self._watch)
        try:
            await stream.send(CONNECTED + b"\n")
            await relay(stream, server, Traffic(), idle=_IDLE)
            await server.aclose()
        finally:
            server.abort()


def _reason(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens"
    if isinstance(error, TimeoutError):
        return "the server does not accept"
    return (error.strerror or str(error) or type(error).__name__).lower()[: WORD - 10]


def _peer_uid(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])
