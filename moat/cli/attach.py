"""`moat attach [run]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from moat.cli.output import emit, say, table
from moat.cli.parser import Parser
from moat.cli.terminal import attach
from moat.errors import MoatError, RunNotFoundError
from moat.paths import Home
from moat.runtime.known import all_runs, find, one_alive
from moat.runtime.launch import RunHandle
from moat.runtime.records import RunRecord, describe_age

_KEYS = "detach: ctrl-/ d, stop: ctrl-/ k"


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="moat attach",
        description="Join a running run: its terminal (ctrl-/ then d detaches, ctrl-/ then k stops it), or "
        "the output of a plain command (Ctrl-C detaches, twice stops it).",
    )
    parser.add_argument("run", nargs="?", help="name or id (default: the only one that runs)")
    options = parser.parse_args(argv)
    record = _choose(Home.from_environment(), options.run)
    if record.state.ended or not record.socket:
        raise MoatError(f"{record.name} has ended ({record.state})", hint=f"moat logs {record.id}")
    if sys.stderr.isatty():
        say(f"attached to {record.name} ({_KEYS if record.tty else 'Ctrl-C detaches'})")
    return attach(RunHandle.of(record))


def _choose(home: Home, text: str | None) -> RunRecord:
    """By name, else the only one that runs, else by asking."""
    if text is not None:
        return find(home, text)
    try:
        return one_alive(home)
    except RunNotFoundError:
        alive = [run for run in all_runs(home) if not run.state.ended]
        if len(alive) < 2 or not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise
        return _ask(alive)


def _ask(runs: list[RunRecord]) -> RunRecord:
    rows = [
        (str(number), run.name, run.id, describe_age(run.created_at), " ".join(run.argv)[:40])
        for number, run in enumerate(runs, 1)
    ]
    emit(table(("", "NAME", "RUN ID", "AGE", "COMMAND"), rows))
    answer = input(f"Attach to [1-{len(runs)}]: ").strip()
    if not answer.isdigit() or not 1 <= int(answer) <= len(runs):
        raise RunNotFoundError("no run was chosen", hint="moat attach <name>")
    return runs[int(answer) - 1]
