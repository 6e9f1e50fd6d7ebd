"""What task groups leave to their users."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio


async def first_of(*waits: Callable[[], Awaitable[Any]], seconds: float | None = None) -> None:
    """Returns when one of `waits` has, or when the time is over."""

    async def one(wait: Callable[[], Awaitable[Any]]) -> None:
        await wait()
        tasks.cancel_scope.cancel()

    with anyio.move_on_after(seconds):  # None: no limit
        async with anyio.create_task_group() as tasks:
            for wait in waits:
                tasks.start_soon(one, wait)
