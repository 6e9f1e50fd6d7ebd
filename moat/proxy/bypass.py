"""An opaque relay that the kernel does: from socket to socket, past this process."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from time import monotonic
from typing import Protocol, TypeGuard

import anyio

from moat.proxy.splice import POSSIBLE, splice
from moat.proxy.stream import PausableStream, Stream, StreamError, broken


class Counts(Protocol):
    """What went through, in bytes, and what it ended of."""

    up: int
    down: int
    error: str


def bypassable(stream: Stream) -> TypeGuard[PausableStream]:
    """Whether what it carries is what its socket carries, and can be left to the kernel."""
    return POSSIBLE and isinstance(stream, PausableStream) and stream.bare


class Bypass:
    def __init__(self, client: PausableStream, upstream: PausableStream, counts: Counts, idle: float) -> None:
        """idle: seconds without a byte after which both are dropped. The streams keep the time."""
        self._client = client
        self._upstream = upstream
        self._counts = counts
        self._idle = idle
        self._guards = anyio.CancelScope()

    async def run(self) -> None:
        """Until both sides have finished, or one breaks. Raises StreamError when there is no descriptor."""
        self._moved()
        with contextlib.ExitStack() as second:
            try:
                client, upstream = (
                    second.enter_context(stream.sock.dup()) for stream in (self._client, self._upstream)
                )
            except OSError as error:
                raise broken(error) from error
            with self._guards:
                async with anyio.create_task_group() as guards:
                    guards.start_soon(self._guard, self._client)
                    guards.start_soon(self._guard, self._upstream)
                    async with anyio.create_task_group() as pumps:
                        pumps.start_soon(
                            self._pump, self._client, client, self._upstream, upstream, self._went_up
                        )
                        await self._pump(self._upstream, upstream, self._client, client, self._came_down)
                    guards.cancel_scope.cancel()

    def _moved(self) -> None:
        self._client.deadline = self._upstream.deadline = monotonic() + self._idle

    def _went_up(self, size: int) -> None:
        self._counts.up += size
        self._moved()

    def _came_down(self, size: int) -> None:
        self._counts.down += size
        self._moved()

    async def _pump(
        self,
        source: PausableStream,
        readable: socket.socket,
        sink: PausableStream,
        writable: socket.socket,
        on_moved: Callable[[int], None],
    ) -> None:
        try:
            if data := source.pause():
                on_moved(len(data))
                await sink.send(data)
            await sink.flushed()
            await splice(readable, writable, on_moved)
            with contextlib.suppress(OSError):  # the peer has reset the connection: the other pump is told
                writable.shutdown(socket.SHUT_WR)
        except StreamError as error:
            self._end(error)

    async def _guard(self, stream: PausableStream) -> None:
        """The streams tell when their time is over."""
        self._end(await stream.lost())

    def _end(self, error: StreamError) -> None:
        self._counts.error = self._counts.error or str(error)
        self._client.abort()
        self._upstream.abort()
        self._guards.cancel()
