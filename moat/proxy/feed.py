"""Events for any number of readers. None of them holds up the proxy: what a buffer cannot take is counted."""

from __future__ import annotations

from collections import deque
from typing import Self

import anyio

from moat.dataclass import dataclass
from moat.proxy.events import ExchangeFinished


@dataclass(frozen=True, slots=True)
class Missed:
    """So many events came here while the reader's buffer was full. They are nowhere else."""

    count: int


class Feed:
    """Takes events in, hands them to its readers."""

    def __init__(self) -> None:
        self._readers: set[Reader] = set()
        self._closed = False

    def put(self, event: ExchangeFinished) -> None:
        for reader in self._readers:
            reader._put(event)

    def reader(self, buffer: int) -> Reader:
        """A reader of what comes from now on, with room for `buffer` events."""
        reader = Reader(self, buffer)
        if self._closed:
            reader._end()
        else:
            self._readers.add(reader)
        return reader

    def close(self) -> None:
        """No more events: readers end after what they still have."""
        self._closed = True
        for reader in self._readers:
            reader._end()
        self._readers.clear()


class Reader:
    """An async iterator over events, in order; `Missed` stands where some are missing. For one task."""

    def __init__(self, feed: Feed, buffer: int) -> None:
        if buffer < 1:
            raise ValueError("a reader needs room for at least one event")
        self._feed = feed
        self._room = buffer
        self._waiting: deque[ExchangeFinished | Missed] = deque()
        self._lost = 0
        self._ended = False
        self._news = anyio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ExchangeFinished | Missed:
        while not self._waiting:
            if self._lost:
                lost, self._lost = self._lost, 0
                return Missed(lost)
            if self._ended:
                raise StopAsyncIteration
            self._news = anyio.Event()
            await self._news.wait()
        return self._waiting.popleft()

    def close(self) -> None:
        """Take no more events. What is there can still be read."""
        self._feed._readers.discard(self)
        self._end()

    def _put(self, event: ExchangeFinished) -> None:
        if len(self._waiting) >= self._room:
            self._lost += 1
            return
        if self._lost:
            self._waiting.append(Missed(self._lost))
            self._lost = 0
        self._waiting.append(event)
        self._news.set()

    def _end(self) -> None:
        self._ended = True
        self._news.set()
