"""Two things that task groups leave to their users."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio

from moat.errors import MoatError


@contextlib.contextmanager
def one_error() -> Iterator[None]:
    """A task group reports groups; a caller wants the one thing that went wrong."""
    try:
        yield
    except BaseExceptionGroup as group:
        leaves = list(_leaves(group))
        known = [error for error in leaves if isinstance(error, MoatError)]
        if known or len(leaves) == 1:
            raise (known or leaves)[0] from None
        raise


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


async def first_of(*waits: Callable[[], Awaitable[Any]], seconds: float | None = None) -> None:
    """Returns when one of `waits` has, or when the time is over."""

    async def one(wait: Callable[[], Awaitable[Any]]) -> None:
        await wait()
        tasks.cancel_scope.cancel()

    with anyio.move_on_after(seconds):  # None: no limit
        async with anyio.create_task_group() as tasks:
            for wait in waits:
                tasks.start_soon(one, wait)
