"""Which servers speak HTTP/2, and the connections to them. Loads nothing until there is one.

HTTP/2 is offered to a server when the client speaks it, and when the server takes nothing else. For a
client of HTTP/1.1 it would be slower, and its requests would look like another program's.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskGroup, TaskStatus

from moat.proxy.dialling import UpstreamError
from moat.proxy.limits import Limits
from moat.proxy.message import MessageReader
from moat.proxy.stream import Stream, Watch
from moat.proxy.tls import H2, HTTP1

if TYPE_CHECKING:
    from moat.proxy.h2_client import Client

_log = logging.getLogger(__name__)

Key = tuple[str, str, int]  # scheme, host, port
_REMEMBERED = 1024  # servers whose protocol is known


def begins_h2(data: bytes) -> bool:
    """Whether a server's first bytes are a SETTINGS frame (RFC 9113 §3.4), and no HTTP/1.1."""
    return data[:1] == b"\0" and data[3:9] == b"\4\0\0\0\0\0"


class Dialling:
    """One dials for all who wait: they share what comes of it, also that nothing does."""

    def __init__(self) -> None:
        self.lock = anyio.Lock()
        self.made = 0
        self.failures = 0
        self._last: UpstreamError | None = None

    def failed(self, error: UpstreamError) -> None:
        self.failures += 1
        self._last = error.again()

    def check(self, failures: int) -> None:
        """Raises UpstreamError for who has waited since there were so many, if another one came."""
        if self._last is not None and self.failures > failures:
            raise self._last.again()


class Multiplexed:
    """Connections that carry many exchanges at once. They live in the task group of `keep`."""

    def __init__(self, limits: Limits, watch: Watch) -> None:
        self._limits = limits
        self._watch = watch
        self._owners: list[TaskGroup] = []
        self._clients: dict[Key, list[Client]] = {}
        self._protocols: dict[Key, str] = {}
        self._only: set[Key] = set()
        self._dialling: dict[Key, Dialling] = {}

    async def keep(self) -> None:
        """Own connections until cancelled."""
        async with anyio.create_task_group() as tasks:
            self._owners.append(tasks)
            try:
                await anyio.sleep_forever()
            finally:
                self._owners.remove(tasks)

    def protocol(self, key: Key) -> str | None:
        """What the server has agreed on before."""
        return self._protocols.get(key)

    def only(self, key: Key) -> bool:
        """Whether the server has refused to speak anything but HTTP/2."""
        return key in self._only

    def remember(self, key: Key, protocol: str, *, only: bool = False) -> None:
        if protocol == HTTP1:
            self._only.discard(key)
        elif only and len(self._only) < _REMEMBERED:
            self._only.add(key)
        if len(self._protocols) >= _REMEMBERED:
            self._protocols.pop(next(iter(self._protocols)))
        self._protocols[key] = protocol

    def dialling(self, key: Key) -> Dialling:
        """Its lock is held while one dials."""
        dialling = self._dialling.get(key)
        if dialling is None:
            if len(self._dialling) >= _REMEMBERED:
                self._dialling = {key: each for key, each in self._dialling.items() if each.lock.locked()}
            dialling = self._dialling[key] = Dialling()
        return dialling

    def take(self, key: Key) -> MessageReader | None:
        """A stream of a connection that there is: of the newest, the one most likely to be alive."""
        for client in reversed(self._clients.get(key, ())):
            if client.free:
                return MessageReader(client.call(), self._limits)
        return None

    async def adopt(self, key: Key, stream: Stream) -> MessageReader:
        """A first stream of a connection that has just agreed on HTTP/2; owned from here on."""
        from moat.proxy.h2_client import Client

        self.remember(key, H2)
        self._make_room()
        client = Client(stream, self._limits, self._watch)
        await self._owners[-1].start(self._keep, key, client)
        return MessageReader(client.call(), self._limits)

    async def _keep(self, key: Key, client: Client, *, task_status: TaskStatus[None]) -> None:
        self._clients.setdefault(key, []).append(client)
        try:
            await client.run(task_status=task_status)
        except Exception:  # a mistake of ours must end one connection, not the run's network
            _log.exception("a connection to a server ended by an error in moat")
        finally:
            self._clients[key].remove(client)
            if not self._clients[key]:
                del self._clients[key]

    def _make_room(self) -> None:
        """File descriptors are finite: connections that nobody uses make way."""
        clients = [client for clients in self._clients.values() for client in clients]
        if len(clients) >= self._limits.upstream_idle:
            for client in clients:
                if client.idle:
                    client.finish()
                    return
