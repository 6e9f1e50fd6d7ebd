"""`moat stop [run…]`."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import struct
import threading
import time
from collections.abc import Sequence

from moat.cli import several
from moat.cli.output import emit, say
from moat.cli.parser import Parser
from moat.errors import MoatError, UsageError
from moat.paths import Home
from moat.runtime import control, known, records
from moat.runtime.control import Connection, Frame
from moat.runtime.records import RunRecord

_GRACE = 10.0
_LONGEST = 86400.0
_MARGIN = 30.0  # seconds beyond the grace in which a healthy supervisor has cleared up
_CONNECT = 5.0
_UNWRITTEN = {errno.EROFS, errno.ENOSPC, errno.EDQUOT}


def main(argv: Sequence[str]) -> int:
    parser = Parser(prog="moat stop", description="Stop runs: SIGTERM to the command, SIGKILL after a while.")
    parser.add_argument("run", nargs="*", help="name or id (default: the only one that runs)")
    parser.add_argument("--all", action="store_true", help="every run")
    parser.add_argument(
        "-t", "--time", type=_seconds, default=_GRACE, help="seconds until SIGKILL (default: 10)"
    )
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask when there are several")
    options = parser.parse_args(argv)
    home = Home.from_environment()
    wanted = _wanted(home, options.run, every=options.all, yes=options.yes)
    if several.agreed("Stop", wanted, yes=options.yes or options.all):
        _stop_all(home, wanted, options.time)
    return 0


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= _LONGEST:
        raise ValueError
    return value


def _wanted(home: Home, names: Sequence[str], *, every: bool, yes: bool) -> list[RunRecord]:
    if every:
        if names:
            raise UsageError("--all stops every run; it takes no names")
        return [run for run in known.all_runs(home) if not run.state.ended]
    if not names:
        return [known.one_alive(home)]
    found = several.named(known.all_runs(home), names, yes=yes)
    for run in found:
        if run.state.ended:
            raise MoatError(f"{run.name} has already ended ({run.state})", hint="`moat list` shows the runs")
    return found


def _stop_all(home: Home, runs: Sequence[RunRecord], grace: float) -> None:
    """At once: what ignores SIGTERM costs its grace one time and not once for each."""
    threads = [threading.Thread(target=stop, args=(home, run, grace), daemon=True) for run in runs]
    for thread in threads:
        thread.start()
    for thread, run in zip(threads, runs, strict=True):
        thread.join()
        emit(run.id)


def stop(home: Home, record: RunRecord, grace: float = _GRACE) -> None:
    """Returns when the run has ended and everything of it is released."""
    with contextlib.suppress(MoatError, OSError):
        with Connection(record.socket, "control", timeout=_CONNECT) as run:
            run.send(control.pack(Frame.STOP, struct.pack(">d", grace)))
            run.socket.settimeout(grace + _MARGIN)
            while (frame := run.receive()) and frame[0] is not Frame.EXIT:
                pass
        if not _released(home, record):
            # Something broke, or cannot be written: it clears up what it can, and has no more to say.
            _let_go(home, record, _MARGIN)
    if not _released(home, record):
        _force(home, record)


def _released(home: Home, record: RunRecord) -> bool:
    """Whether it has ended, and nothing of it is left."""
    current = records.read(home, record.id)
    return current is None or (current.state.ended and not current.directory)


def _force(home: Home, record: RunRecord) -> None:
    """A supervisor that does not answer is ended; what is left of the run is cleared up."""
    if records.owned(home.run(record.id)):
        say(f"the supervisor of {record.name} does not answer; it is killed")
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, signal.SIGKILL)
        _let_go(home, record, _CONNECT)
    try:
        known.clear(home, records.read(home, record.id) or record)
    except (MoatError, OSError) as error:
        if isinstance(error, OSError) and error.errno in _UNWRITTEN:
            say(f"warning: how {record.name} ended cannot be written: {error.strerror}")
            return
        say(f"warning: something of {record.name} may be left: {error}")
        say(f"hint: `moat destroy {record.id}` tries again")


def _let_go(home: Home, record: RunRecord, seconds: float) -> None:
    """Wait until nobody owns the run, for a while."""
    deadline = time.monotonic() + seconds
    while records.owned(home.run(record.id)) and time.monotonic() < deadline:
        time.sleep(0.02)
