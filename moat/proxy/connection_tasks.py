"""The tasks of a listener's connections: one for each client, and all end before the listener's own does.

A task of anyio has a cancel scope, an event and a handle of its own, which cost a connection 35 µs. Nobody
needs them here: connections are ended all at once, or end by themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from inspect import CORO_CREATED, getcoroutinestate
from typing import Any

import anyio

from moat.proxy.stream_asyncio import running_loop

Connection = Coroutine[Any, Any, None]  # raises nothing, unless it is cancelled


@asynccontextmanager
async def connection_tasks() -> AsyncIterator[Callable[[Connection], object]]:
    """Yields what starts a connection. Left when all have ended; when cancelled, they are.

    As with anyio, who is cancelled stays so: every wait of its clean-up ends at once.
    """
    loop = running_loop()
    if loop is not None:
        tasks = _AsyncioTasks(loop)
        try:
            yield tasks.start
        except BaseException:
            await tasks.cancelled()
            raise
        await tasks.ended()
        return
    async with anyio.create_task_group() as group:
        yield lambda connection: group.start_soon(lambda: connection)


class _AsyncioTasks:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._running: dict[asyncio.Task[None], Connection] = {}
        # Done once the last has ended, when somebody waits for that.
        self._last: asyncio.Future[None] = loop.create_future()

    def start(self, connection: Connection) -> None:
        task = self._loop.create_task(connection)
        self._running[task] = connection
        task.add_done_callback(self._gone)

    def _gone(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        if not self._running and not self._last.done():
            self._last.set_result(None)

    async def ended(self) -> None:
        try:
            while self._running:
                self._last = self._loop.create_future()
                await self._last
        except asyncio.CancelledError:
            await self.cancelled()
            raise

    async def cancelled(self) -> None:
        """Cancel what runs until nothing does, whatever else is cancelled meanwhile."""
        interrupted: asyncio.CancelledError | None = None
        while self._running:
            for task, connection in self._running.items():
                # One that has not begun would never learn that it owns a socket.
                if getcoroutinestate(connection) != CORO_CREATED:
                    task.cancel()
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError as error:
                interrupted = error
        if interrupted is not None:
            raise interrupted
