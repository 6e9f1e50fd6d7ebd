"""Waiting awake for a peer that answers at once, as one on this machine does.

A processor that has gone to sleep is late by as much as half of what a small request costs in the proxy: it
has to be woken, and finds nothing in its caches (benchmarks/README.md). So after a small send to a peer that
has answered promptly the loop goes round for a moment instead of to sleep, as Linux does for interrupts
(`guest_halt_poll_ns`, `net.core.busy_poll`). A peer that does not answer in that time, which is any that is
farther away, or that has the same processor, is waited for like this ever more seldom.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

SECONDS = 0.0005  # of CPU at most for a send
CROWDED_SECONDS = 0.01  # who has several peers to wait for has something to do: no polling for so long
MOST_PASSED = 256  # sends without polling, to a peer that never answers promptly


class Peer:
    """How promptly it has answered lately."""

    __slots__ = ("misses", "passes")

    def __init__(self) -> None:
        self.misses = 0  # answers in a row that did not come while they were waited for
        self.passes = 0  # sends until they are waited for again

    def expect(self, misses: int) -> None:
        self.misses = misses
        self.passes = max(0, min(2 ** min(misses, 30) - 2, MOST_PASSED))


class BusyPoll:
    """Of one loop, which waits awake for one peer at most."""

    __slots__ = ("_again", "_end", "_misses", "_turning", "awaited")

    def __init__(self) -> None:
        self.awaited: Peer | None = None
        self._misses = 0  # of whoever was waited for last
        self._turning = False
        self._end = 0.0  # of the wait
        self._again = 0.0  # when the next wait may begin

    def peer(self) -> Peer:
        """A new one, expected to be as prompt as the last: most connections carry a few requests only."""
        peer = Peer()
        peer.expect(self._misses)
        return peer

    def begin(self, loop: asyncio.AbstractEventLoop, peer: Peer) -> None:
        """After a send to `peer`, by somebody who was woken alone."""
        if peer.passes:
            peer.passes -= 1
            return
        now = monotonic()
        if now < self._again:
            return
        if self.awaited not in {None, peer}:
            self.awaited, self._again = None, now + CROWDED_SECONDS
            return
        self.awaited, self._end = peer, now + SECONDS
        if not self._turning:
            self._turning = True
            loop.call_soon(self._turn, loop)

    def answered(self, peer: Peer) -> None:
        """`peer`, which is awaited, has sent something."""
        self.awaited, peer.misses, self._misses = None, 0, 0

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        peer = self.awaited
        if peer is not None and monotonic() < self._end:
            loop.call_soon(self._turn, loop)
            return
        self._turning = False
        if peer is not None:
            self.awaited = None
            self._misses = peer.misses + 1
            peer.expect(self._misses)
