"""A sandbox held still, for as long as anybody wants it held."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import anyio

from moat.errors import UsageError
from moat.runtime.parts import Part
from moat.runtime.sandbox import Sandbox


class Pausing:
    """Counts who wants a run's processes held still: each `pause` wants its `resume`."""

    def __init__(self, running: Callable[[], Sandbox | None]) -> None:
        """`running`: the sandbox, while its command runs."""
        self._running = running
        self._wanted = 0
        self._lock = anyio.Lock()

    async def pause(self) -> None:
        """Hold it still; without a running command there is nothing to hold. Raises MoatError."""
        async with self._lock:
            if self._wanted == 0 and (sandbox := self._running()):
                await sandbox.pause()
            self._wanted += 1

    async def resume(self, sandbox: Sandbox | None, parts: Iterable[Part]) -> None:
        """Let it go on, when nobody else wants it held; `parts` are told before.

        Raises UsageError when nobody wants it held.
        """
        async with self._lock:
            if self._wanted == 0:
                raise UsageError("the run is not paused")
            self._wanted -= 1
            if self._wanted == 0 and sandbox:
                for part in parts:
                    await part.resuming()
                await sandbox.resume()
