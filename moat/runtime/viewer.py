"""One connected terminal or pipe, as the supervisor sees it: what it has not taken yet waits, up to a bound.

A run is never held up by somebody who merely watches. Who falls too far behind misses what is printed
meanwhile; as soon as they take something again, a terminal gets the whole screen, and the reader of a plain
run is told how much is missing. The pipe of whoever started a plain run is the one exception: it is the
command's stdout, and may be as slow as it likes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from moat.runtime import control
from moat.runtime.control import Frame
from moat.runtime.questions import Asked, told
from moat.runtime.sandbox import Output
from moat.runtime.size import Size

BEHIND = 1 << 20  # bytes that wait for one viewer; with more, the run waits for a moment, then they miss some
_TAKEN = 64 * 1024  # bytes it must take to be waited for again
_IN_FLIGHT = 64 * 1024  # bytes given to the kernel's side, which cannot be taken back
PATIENCE = 0.025  # seconds in which it must have done so: nobody slows a run down below 2.6 MB/s


class SocketViewer:
    def __init__(
        self,
        writer: asyncio.StreamWriter,
        *,
        size: Size | None,
        patience: float | None = PATIENCE,
        read_only: bool = False,
    ) -> None:
        self.size = size
        self.patience = patience
        self.read_only = read_only
        self._writer = writer
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._asked = b""  # the last frame that told of questions
        self._missed = 0  # bytes of output since it fell behind
        self._changed = asyncio.Event()  # something to deliver
        self._taken = asyncio.Event()  # something was delivered
        self._resized = asyncio.Event()
        self._gone = False
        writer.transport.set_write_buffer_limits(high=_IN_FLIGHT)

    def offer(self, output: Output) -> None:
        if self._missed:
            self._missed += len(output.data)
            return
        kind = Frame.STDOUT if output.stream == "stdout" else Frame.STDERR
        for start in range(0, len(output.data), control.MAX_PAYLOAD):
            self._send(control.pack(kind, output.data[start : start + control.MAX_PAYLOAD]))

    def show(self, screen: bytes) -> None:
        """The terminal is to show `screen`, and nothing of what it showed before."""
        self._send(control.pack(Frame.SCREEN, screen))

    def notice(self, text: str) -> None:
        self._send(control.pack(Frame.NOTICE, text.encode()))

    def ask(self, waiting: Sequence[Asked]) -> None:
        """In place of what still waits of the kind: a sandbox can ask for ever, and print nothing."""
        old, self._asked = self._asked, control.pack_json(Frame.ASKED, told(waiting))
        if old in self._queue:
            self._queue[self._queue.index(old)] = self._asked
            self._queued += len(self._asked) - len(old)
        else:
            self._send(self._asked)

    def resize(self, size: Size) -> None:
        """The terminal has this size now."""
        self.size = size
        self._resized.set()

    async def resized(self) -> None:
        """Returns when there was a `resize` since the last time."""
        await self._resized.wait()
        self._resized.clear()

    async def caught_up(self) -> None:
        if self._queued > BEHIND:
            while self._queued > BEHIND - _TAKEN and not self._gone:
                self._taken.clear()
                await self._taken.wait()
        if self._gone or self._writer.transport.is_closing():
            raise ConnectionError

    def skip(self) -> None:
        """Give up on what waits: it is missed, and all that comes until `deliver` has caught up."""
        self._missed += self._queued
        self._queue.clear()
        self._queued = 0
        self._changed.set()

    async def deliver(self) -> int:
        """Send what waits, until everything of it is taken and something was missed; returns how much.

        Raises ConnectionError when the viewer is gone. One task.
        """
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                while self._queue:
                    frame = self._queue.popleft()
                    self._queued -= len(frame)
                    self._writer.write(frame)
                    await self._writer.drain()
                    self._taken.set()
                if self._missed:
                    await self._writer.drain()
                    missed, self._missed = self._missed, 0
                    return missed
        except BaseException:
            self._gone = True
            self._taken.set()
            raise

    async def finish(self) -> None:
        """Returns when all that waits was handed to the connection."""
        while self._queue and not self._gone:
            self._taken.clear()
            await self._taken.wait()

    def leave(self, reason: str) -> None:
        """The run goes on without this viewer, who is told why."""
        self._queue.clear()
        self._writer.write(control.pack(Frame.LEFT, reason.encode()))
        self._writer.close()

    def _send(self, frame: bytes) -> None:
        if self._writer.transport.is_closing():  # asyncio would warn of each frame
            return
        if not self._queue and not self._writer.transport.get_write_buffer_size():
            self._writer.write(frame)  # nothing is gained by another task's turn
            return
        self._queue.append(frame)
        self._queued += len(frame)
        self._changed.set()
