"""Opaque relays, for upgrades and for ports of this machine: bytes both ways, each ending on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

import anyio

from moat.proxy.scrub import Scrubber
from moat.proxy.stream import Stream, StreamError


@dataclass(slots=True)
class Traffic:
    """Bytes that went through, and why the relay ended if it did not end by itself."""

    up: int = 0
    down: int = 0
    error: str = ""


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
    scrubber: Scrubber | None = None,
    watches: Sequence[Watch] = (),
) -> None:
    """Pass bytes on until both sides have finished, one breaks, or nothing moves for `idle` seconds.

    A side that finishes its direction is told to the other side, and may go on reading. `scrubber` masks
    what comes down. Closes neither stream unless one broke; then both are dropped.
    """

    async def pump(source: Stream, sink: Stream, *, down: bool) -> None:
        try:
            while data := await source.receive():
                client.deadline = upstream.deadline = monotonic() + idle
                for watch in watches:
                    (watch.down if down else watch.up)(data)
                if down:
                    traffic.down += len(data)
                    data = scrubber.feed(data) if scrubber is not None else data
                else:
                    traffic.up += len(data)
                if data:
                    await sink.send(data)
            if down and scrubber is not None and (rest := scrubber.finish()):
                await sink.send(rest)
            await sink.send_eof()
        except StreamError as error:
            traffic.error = traffic.error or str(error)
            source.abort()
            sink.abort()

    client.deadline = upstream.deadline = monotonic() + idle
    async with anyio.create_task_group() as pumps:
        pumps.start_soon(lambda: pump(client, upstream, down=False))
        await pump(upstream, client, down=True)
