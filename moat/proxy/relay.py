"""Opaque relays, for upgrades and for ports of this machine: bytes both ways, each ending on its own.

Bytes that nobody has to see are moved by the kernel (`splice`).
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

import anyio

from moat.proxy.splice import POSSIBLE, splice
from moat.proxy.stream import CLOSE_SECONDS, PausableStream, Stream, StreamError, broken


@dataclass(slots=True)
class Traffic:
    """What went through, and why the relay ended if it did not end by itself."""

    up: int = 0
    down: int = 0
    messages: tuple[int, int] = (0, 0)  # up and down, of a WebSocket whose frames were read
    error: str = ""


class PartingError(StreamError):
    """What came cannot go on, and both sides can be told so in words of their protocol."""

    def __init__(self, reason: str, *, to_client: bytes, to_upstream: bytes) -> None:
        super().__init__(reason)
        self.to_client = to_client
        self.to_upstream = to_upstream


class Filter(Protocol):
    """What one direction becomes on its way: `Scrubber`, frames of a WebSocket. May raise StreamError."""

    def feed(self, data: bytes) -> bytes: ...
    def finish(self) -> bytes: ...


class Watch(Protocol):
    """Sees the bytes of a relay before they are passed on. Raises StreamError for what must not pass."""

    def up(self, data: bytes) -> None: ...
    def down(self, data: bytes) -> None: ...


async def relay(
    client: Stream,
    upstream: Stream,
    traffic: Traffic,
    *,
    idle: float,
    up: Filter | None = None,
    down: Filter | None = None,
    watches: Sequence[Watch] = (),
    at_idle: Callable[[], PartingError] | None = None,
) -> None:
    """Pass bytes on until both sides have finished, one breaks, or nothing moves for `idle` seconds.

    A side that finishes its direction is told to the other side, and may go on reading. `up` and `down`
    change what goes there. Closes neither stream unless one broke; then both are dropped, after a last word
    if there is one: of what went wrong, or, when nothing moves, of `at_idle`.
    """
    if (
        POSSIBLE
        and not (up or down or watches)
        and isinstance(client, PausableStream)
        and isinstance(upstream, PausableStream)
        and client.bare
        and upstream.bare
    ):
        await _past_us(client, upstream, traffic, idle)
        return
    parting: PartingError | None = None
    # The time of a stream must not be over before a last word is said.
    patience = idle if at_idle is None else idle + CLOSE_SECONDS

    def end(error: PartingError) -> None:
        nonlocal parting
        traffic.error, parting = traffic.error or str(error), error
        pumps.cancel_scope.cancel()

    async def wait_for_idle(last_word: Callable[[], PartingError]) -> None:
        while (left := client.deadline - CLOSE_SECONDS - monotonic()) > 0:
            await anyio.sleep(left)
        end(last_word())

    async def pump(source: Stream, sink: Stream, change: Filter | None, *, downwards: bool) -> None:
        try:
            while data := await source.receive():
                client.deadline = upstream.deadline = monotonic() + patience
                for watch in watches:
                    (watch.down if downwards else watch.up)(data)
                if downwards:
                    traffic.down += len(data)
                else:
                    traffic.up += len(data)
                if change is not None:
                    data = change.feed(data)
                if data:
                    await sink.send(data)
            if change is not None and (rest := change.finish()):
                await sink.send(rest)
            await sink.send_eof()
        except PartingError as error:
            end(error)
        except StreamError as error:
            traffic.error = traffic.error or str(error)
            source.abort()
            sink.abort()

    client.deadline = upstream.deadline = monotonic() + patience
    async with anyio.create_task_group() as pumps:
        if at_idle is not None:
            pumps.start_soon(wait_for_idle, at_idle)
        async with anyio.create_task_group() as both:
            both.start_soon(lambda: pump(client, upstream, up, downwards=False))
            await pump(upstream, client, down, downwards=True)
        pumps.cancel_scope.cancel()
    if parting is not None:
        async with anyio.create_task_group() as partings:
            partings.start_soon(_part, client, parting.to_client)
            partings.start_soon(_part, upstream, parting.to_upstream)


async def _past_us(client: PausableStream, upstream: PausableStream, traffic: Traffic, idle: float) -> None:
    """The same from socket to socket. The streams keep the time, and tell when it is over."""

    def went_up(size: int) -> None:
        traffic.up += size
        client.deadline = upstream.deadline = monotonic() + idle

    def came_down(size: int) -> None:
        traffic.down += size
        client.deadline = upstream.deadline = monotonic() + idle

    async def pump(source: PausableStream, sink: PausableStream, on_moved: Callable[[int], None]) -> None:
        try:
            if data := source.pause():
                on_moved(len(data))
                await sink.send(data)
            await sink.flushed()
            await splice(sockets[source], sockets[sink], on_moved)
            with contextlib.suppress(OSError):  # the peer has reset the connection: the other pump is told
                sockets[sink].shutdown(socket.SHUT_WR)
        except StreamError as error:
            end(error)

    def end(error: StreamError) -> None:
        traffic.error = traffic.error or str(error)
        client.abort()
        upstream.abort()
        guards.cancel_scope.cancel()

    async def guard(stream: PausableStream) -> None:
        end(await stream.lost())

    client.deadline = upstream.deadline = monotonic() + idle
    with contextlib.ExitStack() as second:
        try:
            sockets = {stream: second.enter_context(stream.sock.dup()) for stream in (client, upstream)}
        except OSError as error:  # no descriptor is left
            raise broken(error) from error
        async with anyio.create_task_group() as guards:
            guards.start_soon(guard, client)
            guards.start_soon(guard, upstream)
            async with anyio.create_task_group() as pumps:
                pumps.start_soon(pump, client, upstream, went_up)
                await pump(upstream, client, came_down)
            guards.cancel_scope.cancel()


async def _part(stream: Stream, last: bytes) -> None:
    """Say a last word. What still comes is dropped: unread, it would reset the connection, past the word.

    Where there is none to be said the stream is dropped.
    """
    if not last:
        stream.abort()
        return
    stream.deadline = monotonic() + CLOSE_SECONDS
    with contextlib.suppress(StreamError):
        await stream.send(last)
        await stream.send_eof()
        while await stream.receive():
            pass
    await stream.aclose()
