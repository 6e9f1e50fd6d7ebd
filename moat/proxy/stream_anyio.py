"""Streams on any other anyio backend (trio): a non-blocking socket and anyio's waiting functions."""

from __future__ import annotations

import contextlib
import socket

import anyio

from moat.proxy.stream import BUFFER, CLOSE_SECONDS, Stream, StreamError, Watch, broken


class AnyioStream(Stream):
    """Reads from the kernel only when the reader asks, so the kernel's buffer is the back-pressure."""

    __slots__ = ("_sending",)

    def __init__(self, sock: socket.socket, watch: Watch) -> None:
        super().__init__(sock, watch)
        self._sending = anyio.Lock()

    async def _more(self) -> None:
        try:
            await anyio.wait_readable(self.sock)
        except (anyio.ClosedResourceError, OSError) as error:
            if self._broken is None:
                self._broken = broken(error if isinstance(error, OSError) else None)
            return
        self.poll()

    def poll(self) -> None:
        if self._broken is not None or self._ended or len(self._inbox) > 1:
            return
        try:
            data = self.sock.recv(BUFFER)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._broken = broken(error)
            return
        if data:
            self._inbox.append(data)
        else:
            self._ended = True

    async def _write(self, data: bytes) -> None:
        async with self._sending:
            view = memoryview(data)
            while view:
                try:
                    view = view[self.sock.send(view) :]
                except (BlockingIOError, InterruptedError):
                    await self._writable()
                except OSError as error:
                    raise self._broken or broken(error) from error

    async def _writable(self) -> None:
        try:
            await anyio.wait_writable(self.sock)
        except (anyio.ClosedResourceError, OSError) as error:
            raise self._broken or broken(error if isinstance(error, OSError) else None) from error

    async def _write_eof(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    async def _close(self, goodbye: bytes) -> None:
        try:
            with anyio.move_on_after(CLOSE_SECONDS), contextlib.suppress(StreamError):
                await self._write(goodbye)
        finally:
            self._abort()

    def _close_now(self, goodbye: bytes) -> None:
        with contextlib.suppress(OSError):
            self.sock.send(goodbye)
        self._abort()

    def _abort(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            anyio.notify_closing(self.sock)
        self.sock.close()
