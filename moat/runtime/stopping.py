"""How a run is stopped: its command is asked to end, then made to."""

from __future__ import annotations

import signal

import anyio

from moat.runtime.sandbox import Sandbox

GRACE = 10.0  # seconds between SIGTERM and SIGKILL
_HANG_UP = 1.0  # seconds after which what ignores SIGTERM on a terminal (a shell) loses the terminal
_DRAIN = 3.0  # seconds in which the viewers of a stopped run may take its last output


class Stopping:
    """Whether a run was asked to stop, and what is done about it."""

    def __init__(self) -> None:
        self.asked = anyio.Event()
        self._grace = GRACE

    def ask(self, grace: float) -> None:
        """`grace`: seconds for the command to end by itself; of none left it gets none."""
        self._grace = grace if grace > 0 else 0.0
        self.asked.set()

    async def end(self, sandbox: Sandbox, *, terminal: bool) -> None:
        """Ask the command to end, then make it."""
        await sandbox.signal(signal.SIGTERM)
        patience = self._grace
        if terminal and patience > _HANG_UP:
            await anyio.sleep(_HANG_UP)
            await sandbox.signal(signal.SIGHUP)
            patience -= _HANG_UP
        await anyio.sleep(patience)
        await sandbox.destroy()

    async def gave_up(self) -> None:
        """Returns when a stopped run has waited long enough for a pipe that nobody empties."""
        await self.asked.wait()
        await anyio.sleep(_DRAIN)
