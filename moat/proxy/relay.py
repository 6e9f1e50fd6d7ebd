"""Opaque relays, for upgrades and for ports of this machine: bytes both ways, each ending on its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

import anyio

from moat.proxy.stream import CLOSE_SECONDS, Stream, StreamError


@dataclass(slots=True)
class Traffic:
    """What went through, and why the relay ended if it did not end by itself."""

    up: int = 0
    down: int = 0
    messages: tuple[int, int] = (0, 0)  # up and down, of a WebSocket whose frames were read
    error: str = ""


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
    goodbyes: Callable[[StreamError], tuple[bytes, bytes]] | None = None,
) -> None:
    """Pass bytes on until both sides have finished, one breaks, or nothing moves for `idle` seconds.

    A side that finishes its direction is told to the other side, and may go on reading. `up` and `down`
    change what goes there. Closes neither stream unless one broke, or what came was refused; then both are
    dropped. `goodbyes`: what client and upstream are told before that, in a protocol that has words for it.
    """
    refusal: StreamError | None = None

    async def pump(source: Stream, sink: Stream, change: Filter | None, *, downwards: bool) -> None:
        nonlocal refusal
        try:
            while data := await source.receive():
                client.deadline = upstream.deadline = monotonic() + idle
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
        except StreamError as error:
            traffic.error = traffic.error or str(error)
            if goodbyes is not None and not (source.broken or sink.broken):
                refusal = error
                pumps.cancel_scope.cancel()
                return
            source.abort()
            sink.abort()

    client.deadline = upstream.deadline = monotonic() + idle
    async with anyio.create_task_group() as pumps:
        pumps.start_soon(lambda: pump(client, upstream, up, downwards=False))
        await pump(upstream, client, down, downwards=True)
    if refusal is not None and goodbyes is not None:
        for stream, words in zip((client, upstream), goodbyes(refusal), strict=True):
            stream.deadline = monotonic() + CLOSE_SECONDS
            with suppress(StreamError):
                await stream.send(words)
            await stream.aclose()
