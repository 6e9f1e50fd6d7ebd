"""Small pieces that streams send, put off until everybody who was woken with them has gone on.

A send is a long way through the kernel, and what Python has in the processor's caches is gone after it. Seven
exchanges and then seven sends cost less than seven times an exchange and its send (benchmarks/README.md).
Who was woken alone puts nothing off. Neither does whoever carries bulk, and nobody waits for him: peers that
are answered together send their next bodies together, which is more than the caches hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

SMALL = 16384  # bytes; what is larger is bulk
MOST = 16  # pieces; the first of them has waited for long enough


class Batch:
    """What streams of one loop have put off, until its next turn at the latest."""

    __slots__ = ("held", "woken")

    def __init__(self) -> None:
        # Streams whose reader is about to go on. One that is cancelled instead stays here for a turn.
        self.woken: set[object] = set()
        self.held: dict[asyncio.Transport, bytes] = {}

    def hold(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, wire: bytes) -> bool:
        """Whether `wire` is put off. Otherwise it is to be written now; what was put off has been."""
        held = self.held
        if not self.woken or len(wire) > SMALL or len(held) >= MOST or transport in held:
            self.flush()
            return False
        if not held:
            loop.call_soon(self._end)
        held[transport] = wire
        return True

    def flush(self) -> None:
        """Write what was put off: before anything else is done to a transport than to send."""
        held, self.held = self.held, {}
        for transport, wire in held.items():
            if transport.is_closing():
                continue
            try:
                transport.write(wire)
            except RuntimeError:  # it had said that it has finished; the others' pieces must not be lost
                transport.abort()

    def _end(self) -> None:
        self.woken.clear()
        self.flush()
