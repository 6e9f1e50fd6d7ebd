"""Streams on asyncio and uvloop: a thin Protocol.

With `accepting` and `connection_tasks` all of the proxy that knows asyncio. anyio's own streams cost two to
three times as much per request here (facts in benchmarks/README.md): a queue, an event and a checkpoint for
every read. This one keeps what came in in a list and wakes at most one reader and one writer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import cast

import anyio

from moat.proxy.batch import SMALL
from moat.proxy.stream import BUFFER, CLOSE_SECONDS, PausableStream, StreamError, Watch, broken


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The asyncio loop that runs the caller; None under trio."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class AsyncioStream(PausableStream, asyncio.Protocol):
    """Reading stops when more than BUFFER bytes wait for the reader, sending when they wait for the peer."""

    __slots__ = (
        "_batch",
        "_brief",
        "_closed",
        "_drained",
        "_loop",
        "_paused",
        "_peer",
        "_poll",
        "_reader",
        "_size",
        "_transport",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, watch: Watch) -> None:
        super().__init__(sock, watch)
        self._loop = loop
        self._batch = watch.batch
        self._poll = watch.poll
        self._peer = watch.poll.peer()
        self._transport: asyncio.Transport
        self._reader: asyncio.Future[None] | None = None  # who waits for input
        self._drained: asyncio.Future[None] | None = None  # pending while the peer takes nothing
        self._closed: asyncio.Future[None] = loop.create_future()
        self._size = 0  # bytes in the inbox
        self._paused = False
        self._brief = False  # what came last was small

    @classmethod
    async def open(cls, loop: asyncio.AbstractEventLoop, sock: socket.socket, watch: Watch) -> AsyncioStream:
        stream = cls(loop, sock, watch)
        try:
            await loop.connect_accepted_socket(lambda: stream, sock)
        except BaseException:
            watch.discard(stream)
            sock.close()
            raise
        return stream

    # --- called by the loop ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its class
        self._transport.set_write_buffer_limits(BUFFER)

    def data_received(self, data: bytes) -> None:
        self._inbox.append(data)
        self._size += len(data)
        if self._size > BUFFER and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        if self._poll.awaited is self._peer:
            self._poll.answered(self._peer)
        self._brief = self._size <= SMALL
        if not self._brief:
            self._batch.flush()  # what this stream has put off must not be overtaken by what it does not
        elif self._reader is not None:
            self._batch.woken.add(self)
        self._wake()

    def eof_received(self) -> bool:
        self._ended = True
        self._wake()
        self._check_gone()
        return True  # keep our direction open

    def connection_lost(self, exc: Exception | None) -> None:
        if self._broken is None:
            if exc is not None:
                self._rescue()
            self._broken = broken(exc) if exc is not None else StreamError("the connection is closed")
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if not self._closed.done():
            self._closed.set_result(None)
        self._batch.woken.discard(self)
        self._wake()
        self._check_gone()

    def pause_writing(self) -> None:
        self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    def _wake(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.set_result(None)

    def _rescue(self) -> None:
        """Fetch what the kernel still holds after a failed write.

        A server that refuses a body early answers, closes, and resets us while we still send. asyncio
        closes the socket at the failed write, and the answer would be lost with it.
        """
        with contextlib.suppress(OSError):
            while data := os.read(self.sock.fileno(), BUFFER):
                self._inbox.append(data)

    # --- called by Stream ------------------------------------------------------------------------

    def _more(self) -> asyncio.Future[None]:
        self._reader = self._loop.create_future()
        return self._reader

    def _taken(self) -> None:
        self._size = 0
        self._batch.woken.discard(self)
        if self._paused:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    async def send(self, data: bytes) -> None:  # twice per exchange: no coroutine in between
        if self._broken is not None:
            raise self._broken
        wire, batch = self._tls.send(data) if self._tls is not None else data, self._batch
        together = self._brief and (batch.woken or batch.held)  # asked here: who is alone makes no call
        if not together or not batch.hold(self._loop, self._transport, wire):
            self._transport.write(wire)
        if self._brief and not together:
            self._poll.begin(self._loop, self._peer)
        if self._drained is not None:
            await self._drain()

    async def _write(self, data: bytes) -> None:
        self._batch.flush()
        self._transport.write(data)
        await self._drain()

    async def _drain(self) -> None:
        if self._drained is not None:
            await self._drained
            if self._broken is not None:
                raise self._broken

    @property
    def bare(self) -> bool:
        return self._tls is None and not self._transport.is_closing()

    def pause(self) -> bytes:
        came = self._available()
        self._transport.pause_reading()
        return came

    async def flushed(self) -> None:
        self._batch.flush()
        self._transport.set_write_buffer_limits(0)
        await self._drain()

    async def lost(self) -> StreamError:
        await asyncio.shield(self._closed)
        return self._broken or StreamError("the connection is closed")

    async def _write_eof(self) -> None:
        self._batch.flush()
        # A peer that has already reset the connection makes shutdown() fail; the reader will be told.
        with contextlib.suppress(OSError):
            self._transport.write_eof()

    async def _close(self, goodbye: bytes) -> None:
        self._batch.flush()
        transport = self._transport
        if goodbye:
            transport.write(goodbye)
        flushed = not transport.get_write_buffer_size()
        transport.close()
        if not flushed:
            try:
                with anyio.move_on_after(CLOSE_SECONDS):
                    await asyncio.shield(self._closed)
            finally:
                transport.abort()

    def _close_now(self, goodbye: bytes) -> None:
        self._batch.flush()
        if goodbye:
            self._transport.write(goodbye)
        self._transport.close()

    def _abort(self) -> None:
        self._batch.flush()
        self._transport.abort()
        self._wake()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def poll(self) -> None:
        """Nothing to do: the loop calls `data_received` whether somebody reads or not."""
