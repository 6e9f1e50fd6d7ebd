"""`moat stop [run…]`."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import time
from collections.abc import Sequence

from moat.cli.output import emit, say
from moat.cli.parser import Parser
from moat.errors import MoatError, UsageError
from moat.paths import Home
from moat.runtime import control, known, records
from moat.runtime.control import Connection, Frame
from moat.runtime.records import RunRecord

_GRACE = 10.0
_MARGIN = 30.0  # seconds beyond the grace in which a healthy supervisor has cleared up
_CONNECT = 5.0


def main(argv: Sequence[str]) -> int:
    parser = Parser(prog="moat stop", description="Stop runs: SIGTERM to the command, SIGKILL after a while.")
    parser.add_argument("run", nargs="*", help="name or id (default: the only one that runs)")
    parser.add_argument("--all", action="store_true", help="every run")
    parser.add_argument(
        "-t", "--time", type=float, default=_GRACE, help="seconds until SIGKILL (default: 10)"
    )
    options = parser.parse_args(argv)
    home = Home.from_environment()
    wanted = _wanted(home, options.run, every=options.all)
    for record in wanted:
        stop(home, record, max(0.0, options.time))
        emit(record.id)
    return 0


def _wanted(home: Home, names: Sequence[str], *, every: bool) -> list[RunRecord]:
    if every:
        if names:
            raise UsageError("--all stops every run; it takes no names")
        return [run for run in known.all_runs(home) if not run.state.ended]
    found = [known.find(home, name) for name in names] or [known.one_alive(home)]
    for run in found:
        if run.state.ended:
            raise MoatError(f"{run.name} has already ended ({run.state})", hint="`moat list` shows the runs")
    return found


def stop(home: Home, record: RunRecord, grace: float) -> None:
    """Returns when the run has ended and everything of it is released."""
    with contextlib.suppress(MoatError, OSError):
        with Connection(record.socket, "control", timeout=_CONNECT) as run:
            run.send(control.pack(Frame.STOP, struct.pack(">d", grace)))
            run.socket.settimeout(grace + _MARGIN)
            while (frame := run.receive()) and frame[0] is not Frame.EXIT:
                pass
        if _ended(home, record):
            return
    _force(home, record)


def _ended(home: Home, record: RunRecord) -> bool:
    current = records.read(home, record.id)
    return current is None or current.state.ended


def _force(home: Home, record: RunRecord) -> None:
    """A supervisor that does not answer is ended; what is left of the run is cleared up."""
    if not records.owned(home.run(record.id)):
        known.find(home, record.id)
        return
    say(f"the supervisor of {record.name} does not answer; it is killed")
    with contextlib.suppress(ProcessLookupError):
        os.kill(record.pid, signal.SIGKILL)
    deadline = time.monotonic() + _CONNECT
    while records.owned(home.run(record.id)) and time.monotonic() < deadline:
        time.sleep(0.02)
    known.find(home, record.id)
