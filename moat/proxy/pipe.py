"""A stream without a socket: what one end sends, the other receives. Multiplexed protocols end in these.

An HTTP/2 stream is served by the same `Exchange` as an HTTP/1.1 connection, over the near end of a pipe;
the far end belongs to whoever speaks HTTP/2. Bounded by `CAPACITY` in the direction of `send`, and by the
peer's flow-control window in that of `give`: `on_taken` tells when it may be opened again.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import cast

import anyio

from moat.proxy.stream import Stream, StreamError, Watch

CAPACITY = 64 * 1024  # bytes that may wait for the other end before a sender waits too
_PIECE = 1024  # bytes up to which pieces are put together: single bytes would cost a window 80 times its size


class _Nowhere:
    """In place of a socket: it has no TCP option that could be set."""

    family = socket.AF_UNIX


class PipeEnd(Stream):
    """One end. Both have to be closed or aborted by their owners."""

    __slots__ = ("_cut", "_readable", "_room", "_size", "on_taken", "peer")

    def __init__(self, watch: Watch) -> None:
        super().__init__(cast("socket.socket", _Nowhere()), watch)
        self.peer: PipeEnd
        self.on_taken: Callable[[], None] | None = None  # called when all that was here has been received
        self._size = 0  # bytes in the inbox
        self._cut = False  # the other end closed without a goodbye
        self._readable: anyio.Event | None = None  # who waits for input
        self._room: anyio.Event | None = None  # who waits for the other end to take something

    @classmethod
    def pair(cls, watch: Watch) -> tuple[PipeEnd, PipeEnd]:
        """Two connected ends: near and far."""
        near, far = cls(watch), cls(watch)
        near.peer, far.peer = far, near
        return near, far

    # --- for the owner of the other end ----------------------------------------------------------

    def give(self, data: bytes) -> None:
        """Put bytes into this end's inbox. Whoever gives keeps the bound."""
        inbox = self._inbox
        if data and self._broken is None:
            if inbox and len(inbox[-1]) + len(data) <= _PIECE:
                inbox[-1] += data
            else:
                inbox.append(data)
            self._size += len(data)
            self._wake()

    def lose(self, reason: str | StreamError) -> None:
        """The connection behind the pipe broke. What was given before can still be received."""
        if self._broken is None:
            self._broken = reason if isinstance(reason, StreamError) else StreamError(reason)
            self._wake()
            self._check_gone()

    @property
    def truncated(self) -> bool:
        return self._ended and self._cut

    # --- what a transport provides ---------------------------------------------------------------

    async def _more(self) -> None:
        self._readable = anyio.Event()
        await self._readable.wait()

    async def _write(self, data: bytes) -> None:
        peer = self.peer
        peer.give(data)
        while peer._size > CAPACITY and self._broken is None and peer._broken is None:
            self._room = anyio.Event()
            await self._room.wait()
        if self._broken is not None:
            raise self._broken

    async def _write_eof(self) -> None:
        self._finish()

    async def aclose(self, *, goodbye: bool = True) -> None:
        if not goodbye:
            self.peer._cut = True
        await super().aclose(goodbye=goodbye)

    async def _close(self, goodbye: bytes) -> None:
        self._close_now(goodbye)

    def _close_now(self, goodbye: bytes) -> None:  # noqa: ARG002 - there is no TLS here
        self._finish()
        self._wake()

    def _abort(self) -> None:
        self._wake()
        if not self.peer._ended:
            self.peer.lose("the other side gave up")

    def _taken(self) -> None:
        self._size = 0
        self.peer._wake()
        if self.on_taken is not None:
            self.on_taken()

    def poll(self) -> None:
        """Nothing to do: what is given is here."""

    def _finish(self) -> None:
        self.peer._ended = True
        self.peer._wake()
        self.peer._check_gone()

    def _wake(self) -> None:
        for event in (self._readable, self._room):
            if event is not None:
                event.set()
