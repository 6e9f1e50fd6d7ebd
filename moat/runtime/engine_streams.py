"""What goes in and out of a container, or of a further command in one, over a connection to the engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

from moat.runtime.engine_http import EngineError, Exchange, decoded, translated
from moat.runtime.sandbox import Output
from moat.runtime.size import Size

_PIECE = 65536
_HEAD = 8  # bytes before a piece of a stream: its number, three zeros, its length
_STDERR = 2
_LOOK = 0.05  # seconds between two looks at a command that has closed its output


class Attachment:
    """The streams of one container. `terminal`: one stream as it is, else stdout and stderr in turns."""

    def __init__(self, exchange: Exchange, *, terminal: bool) -> None:
        self._exchange = exchange
        self._terminal = terminal
        self._number = 0
        self._left = 0  # bytes of a piece that have not come yet

    async def read(self) -> Output | None:
        """The next piece; None at the end. Not reading holds the container's output back."""
        reader = self._exchange.reader
        with translated():
            while not self._terminal and not self._left:
                try:
                    head = await reader.readexactly(_HEAD)
                except asyncio.IncompleteReadError:
                    return None
                self._number, self._left = head[0], int.from_bytes(head[4:], "big")
            data = await reader.read(_PIECE if self._terminal else min(self._left, _PIECE))
        self._left -= min(self._left, len(data))
        return Output("stderr" if self._number == _STDERR else "stdout", data) if data else None

    async def write(self, data: bytes) -> None:
        """Waits while the container does not read. What comes after its end is dropped."""
        writer = self._exchange.writer
        if not writer.is_closing():
            with contextlib.suppress(OSError):
                writer.write(data)
                await writer.drain()

    def write_eof(self) -> None:
        """Half-close: the container's stdin ends, its output goes on."""
        writer = self._exchange.writer
        if not writer.is_closing():
            with contextlib.suppress(OSError):
                writer.write_eof()

    def close(self) -> None:
        """Drop the connection with whatever is on its way."""
        self._exchange.close()


class Ending:
    """The engine's word on how a container ends. Asked for before it starts, so that no end is missed."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def status(self) -> int:
        """The exit status, once there is one. May be asked again, by one at a time. Raises EngineError."""
        return int(decoded(await self._exchange.body())["StatusCode"])

    def close(self) -> None:
        self._exchange.close()


class ContainerExecution:
    """Implements `sandbox.Execution`. `inspect` asks the engine about it, `resize` tells it a size."""

    def __init__(
        self,
        streams: Attachment,
        *,
        terminal: bool,
        inspect: Callable[[], Awaitable[dict[str, Any]]],
        resize: Callable[[Size], Awaitable[None]],
    ) -> None:
        self._streams = streams
        self._terminal = terminal
        self._inspect = inspect
        self._resize = resize

    async def read(self) -> Output | None:
        return await self._streams.read()

    async def write(self, data: bytes) -> None:
        await self._streams.write(data)

    async def close_stdin(self) -> None:
        if not self._terminal:
            self._streams.write_eof()

    async def resize(self, size: Size) -> None:
        await self._resize(size)

    async def signal(self, number: int) -> None:
        """The engine has no call for it; on Linux its processes are this machine's."""
        status = await self._inspect()
        if status["Running"] and status["Pid"]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(int(status["Pid"]), number)

    async def wait(self) -> int:
        """The exit status. Call it after the last `read`."""
        while (status := await self._inspect())["Running"]:
            await asyncio.sleep(_LOOK)
        return int(status["ExitCode"] or 0)

    async def close(self) -> None:
        with contextlib.suppress(EngineError):  # the engine, or the container, went away: so has the command
            await self.signal(signal.SIGKILL)
        self._streams.close()
