"""In the container: joins the sandbox's connections with the run's proxy socket, and answers its DNS.

The other way round, it joins what the run asks for with servers in the sandbox (`_obey`).

Standard library only, Python 3.7 and later, with no import of Moat (see `sandbox_init`).
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moat.runtime import dnsstub
else:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # `python3 -I` leaves it out
    import dnsstub

PLACE = "/run/moat/egress/"
EGRESS = PLACE + "proxy.sock"
LOOPBACKS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
HOST_NAME, HOST_ADDRESS = "moat-host", "127.63.0.1"
CHUNK = 65536
HEAD_LIMIT = 16384  # bytes of the proxy's answer to a CONNECT
_RESET = b"\1\0\0\0\0\0\0\0"  # struct linger: on, 0 seconds


def serve(listeners: Iterable[tuple[str, socket.socket]]) -> None:
    """Serve until killed. Each listener comes with its kind: proxy, captured, host or dns."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(Forwarder().run(list(listeners)))


class Forwarder:
    def __init__(self) -> None:
        self._names = dnsstub.NameTable({HOST_NAME: HOST_ADDRESS})
        self._connections: set[asyncio.Task[None]] = set()

    async def run(self, listeners: list[tuple[str, socket.socket]]) -> None:
        loop = asyncio.get_event_loop()
        loop.set_exception_handler(lambda *_: None)  # there is nowhere to write to
        accepting = []
        for kind, sock in listeners:
            sock.setblocking(False)
            if kind == "dns":
                loop.add_reader(sock.fileno(), self._answer, sock)
            elif kind == "dial":
                accepting.append(self._obey(sock))
            else:
                accepting.append(self._accept(kind, sock))
        await asyncio.gather(*accepting)

    def _answer(self, sock: socket.socket) -> None:
        try:
            query, sender = sock.recvfrom(4096)
            reply = dnsstub.answer(query, self._names)
            if reply:
                sock.sendto(reply, sender)
        except OSError:
            return

    async def _accept(self, kind: str, sock: socket.socket) -> None:
        loop = asyncio.get_event_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(sock)
            except OSError:  # out of files: wait until some are closed
                await asyncio.sleep(0.1)
                continue
            self._own(loop.create_task(self._forward(kind, client)))

    def _own(self, task: asyncio.Task[None]) -> None:
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _obey(self, control: socket.socket) -> None:
        """Each line of the run is a port and the name of the socket where it waits for it."""
        loop = asyncio.get_event_loop()
        text = b""
        while True:
            try:
                more = await loop.sock_recv(control, CHUNK)
            except OSError:
                return
            if not more:
                return
            *lines, text = (text + more).split(b"\n")
            for line in lines:
                port, _, name = line.decode("ascii").partition(" ")
                self._own(loop.create_task(_bring(int(port), PLACE + name)))

    async def _forward(self, kind: str, client: socket.socket) -> None:
        """One connection, first to last byte. What breaks ends in a reset, never in a clean end of data."""
        loop = asyncio.get_event_loop()
        proxy = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            proxy.setblocking(False)
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            target = self._target(kind, client)
            await loop.sock_connect(proxy, EGRESS)
            if target:
                await loop.sock_sendall(client, await _connect(proxy, target))
            await _join(client, proxy)
        except (OSError, ValueError):
            _reset(client)
        finally:
            client.close()
            proxy.close()

    def _target(self, kind: str, client: socket.socket) -> str | None:
        """`name:port` to ask the proxy for; None where the client speaks to the proxy itself."""
        if kind == "proxy":
            return None
        address, port = client.getsockname()[:2]
        name = HOST_NAME if kind == "host" else self._names.name(address)
        if not name:
            raise ValueError(f"no name was given {address}")
        return f"{name}:{port}"


async def _bring(port: int, path: str) -> None:
    """Join the server on `port` with the run's socket at `path`: `+`, then its bytes; or an error number."""
    loop = asyncio.get_event_loop()
    run = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server = None
    try:
        run.setblocking(False)
        await loop.sock_connect(run, path)
        try:
            server = await _reach(port)
        except OSError as error:
            await loop.sock_sendall(run, b"%d\n" % (error.errno or 0))
            return
        await loop.sock_sendall(run, b"+\n")
        await _join(run, server)
    except (OSError, ValueError):
        if server:
            _reset(server)
    finally:
        run.close()
        if server:
            server.close()


async def _reach(port: int) -> socket.socket:
    loop = asyncio.get_event_loop()
    failure = OSError()
    for family, address in LOOPBACKS:
        try:
            server = socket.socket(family, socket.SOCK_STREAM)
        except OSError:  # no IPv6: what IPv4 said counts
            continue
        try:
            server.setblocking(False)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(server, (address, port))
        except OSError as error:
            server.close()
            if not failure.errno:
                failure = error
        else:
            return server
    raise failure


async def _connect(proxy: socket.socket, target: str) -> bytes:
    """Ask for a tunnel; returns what the far side sent right behind the head of the answer."""
    loop = asyncio.get_event_loop()
    await loop.sock_sendall(proxy, f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode("ascii"))
    data = b""
    while b"\r\n\r\n" not in data:
        more = await loop.sock_recv(proxy, CHUNK)
        if not more or len(data) > HEAD_LIMIT:
            raise ValueError("the proxy did not answer")
        data += more
    head, _, early = data.partition(b"\r\n\r\n")
    if head.split(b" ", 2)[1:2] != [b"200"]:
        raise ValueError("the proxy refused")
    return early


async def _join(client: socket.socket, proxy: socket.socket) -> None:
    """Both directions, until both have ended; the failure of one ends the other."""
    loop = asyncio.get_event_loop()
    ways: list[asyncio.Task[Any]] = [
        loop.create_task(_pump(client, proxy)),
        loop.create_task(_pump(proxy, client)),
    ]
    try:
        await asyncio.gather(*ways)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.wait(ways)


async def _pump(source: socket.socket, target: socket.socket) -> None:
    """Copy at the pace of the slower side; the end of one direction leaves the other open."""
    loop = asyncio.get_event_loop()
    while True:
        data = await loop.sock_recv(source, CHUNK)
        if not data:
            target.shutdown(socket.SHUT_WR)
            return
        await loop.sock_sendall(target, data)


def _reset(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    except OSError:
        return
