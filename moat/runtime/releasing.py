"""What a run holds on the host, and how it lets go of it: the newest first, each within a bound."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from moat.journal import Journal

_PATIENCE = 20.0  # seconds for each resource to let go
_log = logging.getLogger(__name__)


class Resources:
    """The resources of one run, in the order in which they were made."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._held: list[tuple[str, Callable[[], Awaitable[Any]]]] = []
        self._every = True

    def add(self, what: str, release: Callable[[], Awaitable[Any]]) -> None:
        """`what` is its name in the journal, should it not let go."""
        self._held.append((what, release))

    async def release(self) -> bool:
        """Release all, whatever becomes of one. Whether every one let go.

        Nothing that was released is released again; who is cancelled leaves what is left to the next call.
        """
        while self._held:
            self._every &= await self._release(*self._held[-1])
            self._held.pop()
        return self._every

    async def _release(self, what: str, release: Callable[[], Awaitable[Any]]) -> bool:
        with anyio.move_on_after(_PATIENCE):
            try:
                await release()
                return True
            except Exception as error:
                _log.exception("%s was not released", what)
                self._journal.record("run.not_released", what=what, error=str(error))
                return False
        _log.error("%s was not released in %d s", what, _PATIENCE)
        self._journal.record("run.not_released", what=what, error="it took too long")
        return False
