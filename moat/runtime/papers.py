"""What is written of a run, from its first moment to its last: its directory, its record, its journal."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable
from pathlib import Path

import anyio

from moat import config
from moat.config.journal import JournalConfig
from moat.errors import MoatError, StartError
from moat.journal import keeping
from moat.journal.copies import Copies
from moat.paths import Home, private_dir
from moat.runtime import records
from moat.runtime.outcome import Outcome
from moat.runtime.records import Ownership, RunRecord


def own(home: Home, run_id: str) -> Ownership:
    """Make the run's directory and own it. Raises StartError; OSError when descriptors have run out."""
    try:
        private_dir(home.root)
        private_dir(home.runs)
        return Ownership(home.run(run_id))
    except OSError as error:
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            raise
        raise StartError(
            f"runs cannot be kept in {home.root}: {error.strerror}",
            hint="set MOAT_HOME to a directory that you can write",
        ) from error


def _copies(settings: JournalConfig, shown: Iterable[Path]) -> Copies:
    if not settings.copy_to:
        return Copies()
    from moat.runtime.copying import copies_of

    return copies_of(settings, shown)


class Papers:
    """The record (`outcome`) and the journal of a run that begins, and the user's wishes for both."""

    def __init__(self, home: Home, ownership: Ownership, record: RunRecord, shown: Iterable[Path]) -> None:
        """`shown`: what the sandbox can write; no copy of the journal may lie there.

        A run without a record and a journal does not begin: nothing of it remains. Raises MoatError.
        """
        self._home = home
        try:
            self.outcome = Outcome(home, record)
            self.user = config.load_user(home)
            settings = self.user.journal
            self._copies = _copies(settings, shown)
            self.journal = keeping.begin(home, record.id, self._copies, limit=settings.max_size)
        except (OSError, MoatError) as error:
            with contextlib.suppress(OSError):
                records.remove(home, record.id)
            ownership.release()
            if isinstance(error, MoatError):
                raise
            raise StartError(
                f"the journal cannot be written: {error.strerror or error}",
                hint="free space where Moat keeps its runs (`moat clean` removes ended ones)",
            ) from error

    async def seal(self) -> None:
        """The last entry of the journal, and its way to the places where copies are kept."""
        record = self.outcome.record
        self.journal.record("run.ended", state=record.state, exit_code=record.exit_code, error=record.error)
        await anyio.to_thread.run_sync(keeping.end, self._home, record.id, self.journal, self._copies)
