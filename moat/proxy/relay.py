"""Opaque relays, for upgrades and for ports of this machine: bytes both ways, each ending on its own.

Bytes that nobody has to see are moved by the kernel (`bypass`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

import anyio
import anyio.lowlevel

from moat.proxy.bypass import Bypass, bypassable
from moat.proxy.stream import CLOSE_SECONDS, Stream, StreamError

_SLICE = 16 * 1024  # bytes that a filter gets at a time


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
    if not (up or down or watches) and bypassable(client) and bypassable(upstream):
        await Bypass(client, upstream, traffic, idle).run()
    else:
        await _Relay(client, upstream, traffic, idle=idle, watches=watches, at_idle=at_idle).run(up, down)


class _Relay:
    def __init__(
        self,
        client: Stream,
        upstream: Stream,
        traffic: Traffic,
        *,
        idle: float,
        watches: Sequence[Watch],
        at_idle: Callable[[], PartingError] | None,
    ) -> None:
        self._client = client
        self._upstream = upstream
        self._traffic = traffic
        # The time of a stream must not be over before a last word is said.
        self._patience = idle if at_idle is None else idle + CLOSE_SECONDS
        self._watches = watches
        self._at_idle = at_idle
        self._parting: PartingError | None = None
        self._finished: set[Stream] = set()  # who has been told the end of its direction hears no last word
        self._pumps = anyio.CancelScope()

    async def run(self, up: Filter | None, down: Filter | None) -> None:
        self._moved()
        with self._pumps:
            async with anyio.create_task_group() as guard:
                if self._at_idle is not None:
                    guard.start_soon(self._end_when_idle, self._at_idle)
                async with anyio.create_task_group() as both:
                    both.start_soon(self._up, up)
                    await self._down(down)
                guard.cancel_scope.cancel()
        if self._parting is not None:
            async with anyio.create_task_group() as partings:
                for stream, last in (
                    (self._client, self._parting.to_client),
                    (self._upstream, self._parting.to_upstream),
                ):
                    partings.start_soon(_part, stream, b"" if stream in self._finished else last)

    def _moved(self) -> None:
        self._client.deadline = self._upstream.deadline = monotonic() + self._patience

    async def _end_when_idle(self, last_word: Callable[[], PartingError]) -> None:
        while (left := self._client.deadline - CLOSE_SECONDS - monotonic()) > 0:
            await anyio.sleep(left)
        self._end(last_word())

    def _end(self, error: PartingError) -> None:
        self._traffic.error, self._parting = self._traffic.error or str(error), error
        self._pumps.cancel()

    async def _up(self, change: Filter | None) -> None:
        def seen(data: bytes) -> None:
            for watch in self._watches:
                watch.up(data)
            self._traffic.up += len(data)

        await self._pump(self._client, self._upstream, seen, change)

    async def _down(self, change: Filter | None) -> None:
        def seen(data: bytes) -> None:
            for watch in self._watches:
                watch.down(data)
            self._traffic.down += len(data)

        await self._pump(self._upstream, self._client, seen, change)

    async def _pump(
        self, source: Stream, sink: Stream, seen: Callable[[bytes], None], change: Filter | None
    ) -> None:
        try:
            while data := await source.receive():
                self._moved()
                seen(data)
                if change is None:
                    await sink.send(data)
                    continue
                for at in range(0, len(data), _SLICE):
                    if at:
                        await anyio.lowlevel.checkpoint()  # many small frames must not keep others waiting
                    if changed := change.feed(data[at : at + _SLICE]):
                        await sink.send(changed)
            if change is not None and (rest := change.finish()):
                await sink.send(rest)
            self._finished.add(sink)
            await sink.send_eof()
        except PartingError as error:
            self._end(error)
        except StreamError as error:
            self._traffic.error = self._traffic.error or str(error)
            source.abort()
            sink.abort()


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
