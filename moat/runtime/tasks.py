"""What task groups leave to their users."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio

from moat.errors import UsageError


def asyncio_loop() -> asyncio.AbstractEventLoop:
    """The loop that a program's call runs in. Raises UsageError where there is none of asyncio's."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        hint = "`asyncio.run(main())`; beside trio, in a thread of its own"
        raise UsageError("runs need a running event loop of asyncio (or uvloop)", hint=hint) from None


async def first_of(*waits: Callable[[], Awaitable[Any]], seconds: float | None = None) -> None:
    """Returns when one of `waits` has, or when the time is over."""

    async def one(wait: Callable[[], Awaitable[Any]]) -> None:
        await wait()
        tasks.cancel_scope.cancel()

    with anyio.move_on_after(seconds):  # None: no limit
        async with anyio.create_task_group() as tasks:
            for wait in waits:
                tasks.start_soon(one, wait)


async def outlast(task: asyncio.Task[Any], *, on_cancel: Callable[[], Any] = lambda: None) -> None:
    """Returns when `task` has ended, however often the caller is cancelled meanwhile.

    A shield of anyio holds off the cancellations of anyio; Ctrl-C, `asyncio.timeout` and task groups of
    asyncio have their own. Raises CancelledError afterwards when there was one.
    on_cancel: called at the first.
    """
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        on_cancel()
        with anyio.CancelScope(shield=True):
            while not task.done():
                try:
                    await asyncio.wait({task})
                except asyncio.CancelledError:
                    continue
        raise


def failure_of(ended: asyncio.Task[Any]) -> BaseException | None:
    """What ended a task; for the loop it has been looked at."""
    return asyncio.CancelledError() if ended.cancelled() else ended.exception()


@contextlib.contextmanager
def once() -> Iterator[None]:
    """Around what awaits other tasks: Ctrl-C or an exit in one of them comes out of the loop there and then.

    Once more, by who awaited it, it would cut off what all others do at their end.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise asyncio.CancelledError from None
