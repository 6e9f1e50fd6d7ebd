"""Opaque relays, for upgrades and for ports of this machine: bytes both ways, each ending on its own."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
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
) -> None:
    """Pass bytes on until both sides have finished, one breaks, or nothing moves for `idle` seconds.

    A side that finishes its direction is told to the other side, and may go on reading. `up` and `down`
    change what goes there. Closes neither stream unless one broke; then both are dropped, after a last word
    if there is one.
    """
    parting: PartingError | None = None

    async def pump(source: Stream, sink: Stream, change: Filter | None, *, downwards: bool) -> None:
        nonlocal parting
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
        except PartingError as error:
            traffic.error, parting = traffic.error or str(error), error
            pumps.cancel_scope.cancel()
        except StreamError as error:
            traffic.error = traffic.error or str(error)
            source.abort()
            sink.abort()

    client.deadline = upstream.deadline = monotonic() + idle
    async with anyio.create_task_group() as pumps:
        pumps.start_soon(lambda: pump(client, upstream, up, downwards=False))
        await pump(upstream, client, down, downwards=True)
    if parting is not None:
        await _part(client, parting.to_client)
        await _part(upstream, parting.to_upstream)


async def _part(stream: Stream, last: bytes) -> None:
    stream.deadline = monotonic() + CLOSE_SECONDS
    with contextlib.suppress(StreamError):
        await stream.send(last)
    await stream.aclose()
