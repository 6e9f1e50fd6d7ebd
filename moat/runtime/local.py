"""A viewer in the same program: the output of a run as an asynchronous iterator."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence

from moat.runtime.questions import Asked
from moat.runtime.sandbox import Output
from moat.runtime.size import Size

_BEHIND = 1 << 20  # bytes that may wait for the program before the command waits


class LocalViewer:
    """Works like a pipe: who does not read makes the command wait, until `let_go` says nobody will."""

    size: Size | None = None
    patience: float | None = None

    def __init__(self) -> None:
        self._waiting: deque[Output] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()
        self._reading = False
        self._ended = False
        self._ignored = False

    def offer(self, output: Output) -> None:
        self._waiting.append(output)
        self._bytes += len(output.data)
        while self._ignored and self._bytes > _BEHIND:
            self._bytes -= len(self._waiting.popleft().data)
        self._changed.set()

    async def caught_up(self) -> None:
        while self._bytes > _BEHIND and not self._ignored:
            self._changed.clear()
            await self._changed.wait()

    def notice(self, text: str) -> None:
        """A program has the run's record for that."""

    def show(self, screen: bytes) -> None:
        self.offer(Output("stdout", screen))

    def ask(self, waiting: Sequence[Asked]) -> None:
        """A program has `LocalRun.questions` for that."""

    def skip(self) -> None:
        """Never asked for: its patience has no end."""

    def end(self) -> None:
        """The command's output is complete."""
        self._ended = True
        self._changed.set()

    def let_go(self) -> None:
        """Whoever waits for the end without reading does not want the output: it must not block."""
        if not self._reading:
            self._ignored = True
            self._changed.set()

    async def output(self) -> AsyncIterator[Output]:
        self._reading, self._ignored = True, False
        try:
            while self._waiting or not self._ended:
                if self._waiting:
                    piece = self._waiting.popleft()
                    self._bytes -= len(piece.data)
                    self._changed.set()
                    yield piece
                else:
                    self._changed.clear()
                    await self._changed.wait()
        finally:
            self._reading, self._ignored = False, True
            self._changed.set()
