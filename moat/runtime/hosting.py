"""The block of a run that a program owns, with the run's life in a task of its own.

So nothing that befalls the caller's task cuts it short. The block may be cancelled as often as one likes
(Ctrl-C, twice), and be entered in one task and left in another (fixtures, cells of a notebook): the sandbox
is destroyed and the end recorded before it is left.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from types import TracebackType

import anyio

from moat.errors import UsageError
from moat.runtime.local_run import LocalRun
from moat.runtime.run import hosted
from moat.runtime.sandbox import Progress
from moat.runtime.tasks import asyncio_loop, failure_of, first_of, once, outlast


class _LeftError(Exception):
    """The block was left by an error, which comes out of it by itself."""


class Hosting(contextlib.AbstractAsyncContextManager[LocalRun]):
    """For one `async with`. What ends the run from inside cancels the block, and comes out of it."""

    def __init__(self, make: Callable[[], LocalRun], progress: Progress) -> None:
        """`make`: raises what keeps the run from being started."""
        self._make = make
        self._progress = progress
        self._host: asyncio.Task[object] | None = None  # the task that entered the block
        self._owner: asyncio.Task[None] | None = None  # the task of the run
        self._ready = anyio.Event()
        self._left = anyio.Event()
        self._hurry = anyio.Event()
        self._error: BaseException | None = None  # that the block was left by
        self._cancelled_host = False

    async def __aenter__(self) -> LocalRun:
        if self._owner is not None:
            raise UsageError("this run has been started already", hint="each `async with` wants a `start(…)`")
        loop, self._host = asyncio_loop(), asyncio.current_task()
        run = self._make()
        self._owner = owner = loop.create_task(self._own(run), name=run.id)
        owner.add_done_callback(failure_of)
        try:
            await first_of(self._ready.wait, lambda: asyncio.wait({owner}))
        except BaseException:
            owner.cancel()
            await outlast(owner)
            raise
        if owner.done():
            owner.result()
        return run

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._owner is not None
        self._error = error
        self._left.set()
        cancelled = None
        try:
            await outlast(self._owner, on_cancel=self._hurry.set)
        except asyncio.CancelledError as late:
            cancelled = late
        ended_us = self._ended_us()
        if cancelled is not None and not ended_us:
            raise cancelled
        if error is None or ended_us:
            with contextlib.suppress(_LeftError):
                self._owner.result()

    async def _own(self, run: LocalRun) -> None:
        with once():
            async with hosted(run, b"", self._progress):
                await self._live(run)

    async def _live(self, run: LocalRun) -> None:
        await run.started()
        self._ready.set()
        try:
            await self._left.wait()
        except BaseException:  # a part of the run broke, or the loop ends
            self._cancel_host()
            raise
        if self._error is None:
            await first_of(run.stop, self._hurry.wait)
        if not run.record.state.ended:
            run.outcome.blame(self._error or asyncio.CancelledError())
            raise _LeftError

    def _cancel_host(self) -> None:
        if self._host is not None and not self._left.is_set() and not self._host.done():
            self._cancelled_host = True
            self._host.cancel()

    def _ended_us(self) -> bool:
        """Whether the block ended because the run did, and for no other reason."""
        if not self._cancelled_host or self._host is not asyncio.current_task():
            return False
        assert self._host is not None
        return self._host.uncancel() == 0
