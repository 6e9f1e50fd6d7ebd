"""What a run needs of the journal: begin, seal; and for a run whose owner died: close, forget."""

from __future__ import annotations

import contextlib
import logging

from moat.errors import MoatError
from moat.journal import ledger
from moat.journal.copies import Copies
from moat.journal.key import installation_key
from moat.journal.writer import LIMIT, Journal, copy_error
from moat.paths import Home

FILE = "journal.jsonl"
_ARRIVAL = 5.0  # seconds for entries to reach the second places
_log = logging.getLogger(__name__)


def begin(home: Home, run: str, copies: Copies | None = None, *, limit: int = LIMIT) -> Journal:
    """The journal of a new run, entered in the ledger. Raises MoatError, OSError: then no run may start."""
    signer = installation_key(home)
    copies = copies or Copies()
    journal = Journal(home.run(run) / FILE, run=run, signer=signer, copies=copies, limit=limit)
    try:
        ledger.append(home, signer, run, ledger.OPENED, first=journal.last[1])
        copies.start(journal.record)
        _require(copies)
    except (OSError, MoatError):
        journal.close()
        copies.close(0.0)
        raise
    return journal


def _require(copies: Copies) -> None:
    """Wait for the first entry at the required places. Raises MoatError."""
    missing = copies.arrived(_ARRIVAL)
    if missing is not None:
        raise MoatError(
            f"the journal cannot be written: {copy_error(*missing).strerror}",
            hint="it is required in journal.copy_to of ~/.moat/config.yaml",
        )


def end(home: Home, run: str, journal: Journal, copies: Copies | None = None) -> None:
    """Seal, close and let the copies arrive. Blocks.

    A full disk leaves the journal unsealed, which `moat audit` tells.
    """
    if journal.seal():
        with contextlib.suppress(OSError, MoatError):
            _close(home, run, *journal.last)
    for place in copies.close(_ARRIVAL) if copies else ():
        _log.error("the last entries of the journal did not reach %s", place)


def close_abandoned(home: Home, run: str) -> None:
    """Enter in the ledger how far the journal of a dead run got, so that its end cannot be cut off later.

    Does nothing for one that is closed already or was tampered with.
    """
    from moat.journal import verify  # not for a run that ends by itself

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
