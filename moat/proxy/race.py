"""Connecting to one of several addresses: both families at once, the first that answers (RFC 8305).

Everything given has passed the address guard. Only addresses may enter this file: a name would be looked up
a second time, and could then be another place.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import anyio

from moat.proxy.connect import connect
from moat.proxy.limits import Limits
from moat.proxy.stream import Stream, StreamError, Watch


async def connect_first(addresses: Sequence[str], port: int, watch: Watch, limits: Limits) -> Stream:
    """A connection to the address that answers first; the others are given up.

    The next address gets its turn when the one before has failed, or has not answered for `dial_stagger`.
    Raises StreamError: what the attempt that ended last said.
    """
    order = interleaved(addresses)[: limits.dial_addresses]
    if len(order) == 1:
        return await connect((order[0], port), watch, timeout=limits.dial_timeout)
    race = _Race(port, watch, limits)
    try:
        async with anyio.create_task_group() as attempts:
            for address in order:
                over = anyio.Event()
                attempts.start_soon(race.attempt, address, over, attempts.cancel_scope)
                with anyio.move_on_after(limits.dial_stagger):
                    await over.wait()
    except BaseException:
        if race.winner is not None:  # the dial was given up in the moment in which somebody answered
            race.winner.abort()
        raise
    if race.winner is None:
        raise race.error
    return race.winner


def interleaved(addresses: Sequence[str]) -> list[str]:
    """The families in turn, each in the resolver's order; first the one that it put first (RFC 8305 §4)."""
    families: dict[bool, list[str]] = {}
    for address in addresses:
        families.setdefault(":" in address, []).append(address)
    rounds = itertools.zip_longest(*families.values())
    return [address for turn in rounds for address in turn if address is not None]


class _Race:
    """The attempts on the addresses of one name."""

    def __init__(self, port: int, watch: Watch, limits: Limits) -> None:
        self._port = port
        self._watch = watch
        self._limits = limits
        self.winner: Stream | None = None
        self.error = StreamError("no address")

    async def attempt(self, address: str, over: anyio.Event, all_of_them: anyio.CancelScope) -> None:
        try:
            stream = await connect((address, self._port), self._watch, timeout=self._limits.dial_timeout)
        except StreamError as error:
            self.error = error
        else:
            if self.winner is None:
                self.winner = stream
                all_of_them.cancel()
            else:
                stream.abort()  # two answered in the same turn of the loop
        finally:
            over.set()
