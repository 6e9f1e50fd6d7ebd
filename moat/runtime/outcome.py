"""The record of a run while somebody owns it: what happens to it, and what it turns out to be."""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import Any

from moat.errors import MoatError
from moat.paths import Home
from moat.runtime import records
from moat.runtime.records import RunRecord, State

NEVER_BEGAN = "stopped before the command had started"
_log = logging.getLogger(__name__)


class Outcome:
    """Keeps `record` and its file in step. Only the owner of the run may have one."""

    def __init__(self, home: Home, record: RunRecord) -> None:
        """Raises OSError when even the first record cannot be written."""
        self.record = record
        self._home = home
        self._failure = ""
        records.write(home, record)

    def update(self, **changes: Any) -> None:
        """Change the record. A full disk must not end the run: the next change tries again."""
        self.record = dataclasses.replace(self.record, **changes)
        try:
            if (self._home.run(self.record.id) / "lock").exists():  # else somebody has deleted the run
                records.write(self._home, self.record)
        except OSError as error:
            _log.error("run.json was not written: %s", error.strerror)

    def blame(self, error: BaseException, what: str = "") -> None:
        """Something went wrong; the first thing that did is the reason that is recorded."""
        if self._failure or self.record.state.ended:
            return
        if isinstance(error, MoatError):
            self._failure = str(error)
        elif isinstance(error, Exception):
            told = str(error) if what and str(error) else f"{type(error).__name__}: {error}"
            self._failure = f"{what} failed: {told}" if what else told
        else:
            self._failure = "interrupted"

    def conclude(self, *, asked: bool, warned: int = 0) -> None:
        """Record the end. `asked`: somebody had the run stopped, so its status is no failure.

        While the record names a directory, something is left of the run; who finds it without an owner
        clears up (`known.clear`).
        """
        code, error = self.record.exit_code, ""
        if code is None:
            began = self.record.started_at is not None
            error = NEVER_BEGAN if asked and not began else self._failure or "interrupted"
        elif not asked:
            error = self._failure or (f"exit status {code}" if code else "")
        state = State.FAILED if error and not asked else State.STOPPED
        self.update(
            state=state,
            ended_at=time.time(),
            error=error,
            pid=0,
            socket="",
            endpoints={},
            asks=(),
            warned=warned,
        )
