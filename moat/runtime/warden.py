"""The warden of a run: a process that waits until the supervisor has ended, and clears up if it was killed.

A container goes on when the program that made it is gone. Its proxy is gone as well, so it reaches nothing;
yet it must not run until somebody happens to look.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable

from moat.errors import MoatError
from moat.paths import Home
from moat.runtime import known, records
from moat.runtime.records import RunRecord

_RETRY = (0.0, 1.0, 5.0, 15.0, 60.0)  # seconds between attempts: an engine that restarts is back soon


def appoint(home: Home, prepare: Callable[[], None]) -> None:
    """Fork the warden of this process. Call it early: before threads, and while nothing can be inherited.

    prepare: what the warden does first, e.g. to let go of its starter's pipes.
    """
    supervisor = os.getpid()
    watched = os.pidfd_open(supervisor)
    if os.fork():
        os.close(watched)
        return
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # it ends with the supervisor, which obeys them
        prepare()
        select.select([watched], [], [])
        _clear_up(home, supervisor)
    finally:
        os._exit(0)


def _clear_up(home: Home, supervisor: int) -> None:
    for pause in _RETRY:
        time.sleep(pause)
        if not [run for run in _left(home, supervisor) if not _cleared(home, run)]:
            return


def _left(home: Home, supervisor: int) -> list[RunRecord]:
    return [run for run in records.read_all(home) if _of(run, supervisor) and known.is_dead(home, run)]


def _cleared(home: Home, run: RunRecord) -> bool:
    try:
        known.clear(home, run)
    except (MoatError, OSError):
        return False
    return True


def _of(run: RunRecord, supervisor: int) -> bool:
    """By number and start of the machine; once it is settled the number is gone, and the leftovers tell."""
    return run.boot == records.boot_id() and run.pid in {supervisor, 0}
