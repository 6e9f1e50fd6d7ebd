"""What a run needs of the journal: begin, seal; and for a run whose owner died: close, forget."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from moat.errors import MoatError
from moat.journal import ledger, verify
from moat.journal.key import installation_key
from moat.journal.writer import Journal
from moat.paths import Home

FILE = "journal.jsonl"


def begin(home: Home, run: str, heard: Callable[[list[bytes]], None] = lambda _: None) -> Journal:
    """The journal of a new run, entered in the ledger. Raises MoatError, OSError: then no run may start."""
    signer = installation_key(home)
    journal = Journal(home.run(run) / FILE, run=run, signer=signer, heard=heard)
    try:
        ledger.append(home, signer, run, ledger.OPENED, first=journal.last[1])
    except OSError:
        journal.close()
        raise
    return journal


def end(home: Home, run: str, journal: Journal) -> None:
    """Seal and close. A full disk leaves the journal unsealed, which `moat audit` tells."""
    if journal.seal():
        with contextlib.suppress(OSError, MoatError):
            _close(home, run, *journal.last)


def close_abandoned(home: Home, run: str) -> None:
    """Enter in the ledger how far the journal of a dead run got, so that its end cannot be cut off later.

    Does nothing for one that is closed already or was tampered with.
    """
    known = ledger.known(ledger.about(ledger.lines(home), run)).get(run)
    if known is None or known.entries is not None or known.removed:
        return
    report = verify.run(home, run, alive=False)
    if report.status == verify.OK and report.entries:
        _close(home, run, report.entries, report.last)


def forget(home: Home, run: str) -> None:
    """Enter in the ledger that the user removed this run. Raises OSError, MoatError."""
    if ledger.about(ledger.lines(home), run):
        ledger.append(home, installation_key(home), run, ledger.REMOVED)


def _close(home: Home, run: str, entries: int, last: str) -> None:
    ledger.append(home, installation_key(home), run, ledger.CLOSED, entries=entries, last=last)
