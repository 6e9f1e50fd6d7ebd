"""`moat attach [run]`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from moat.chord import Chord
from moat.cli.chord import chosen
from moat.cli.common import add_chord_option
from moat.cli.output import safe, say
from moat.cli.parser import Parser
from moat.cli.results import tell_results
from moat.cli.terminal import attach
from moat.errors import MoatError, RunNotFoundError, UsageError
from moat.paths import Home
from moat.runtime import known
from moat.runtime.handle import RunHandle
from moat.runtime.records import AmbiguousRunError, RunRecord, describe_age
from moat.runtime.screen import last_line

_END = 16 * 1024  # bytes of a log in which its last line is looked for
_SHOWN = 60  # characters of that line


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="moat attach",
        description="Join a running run: its terminal (ctrl-/ opens a menu, ctrl-/ then d detaches), or "
        "the output of a plain command (Ctrl-C detaches, twice stops it). Several may be attached; "
        "the smallest terminal rules the size.",
    )
    parser.add_argument(
        "run", nargs="?", help="name or id (default: the only one that runs, else you choose)"
    )
    parser.add_argument(
        "-r", "--read-only", action="store_true", help="watch only: no key reaches it, Ctrl-C detaches"
    )
    parser.add_argument("--steal", action="store_true", help="detach everybody else who is attached")
    add_chord_option(parser)
    options = parser.parse_args(argv)
    home = Home.from_environment()
    record = _find(home, options.run)
    if record.state.ended or not record.socket:
        tell_results(home, record.id, compare=False)
        raise MoatError(f"{record.name} has ended ({record.state})", hint=f"moat logs {record.id}")
    if options.steal and not record.tty:
        raise UsageError(f"{record.name} has no terminal to take over", hint=f"moat attach {record.name}")
    chord = chosen(home)
    if sys.stderr.isatty():
        say(f"attached to {record.name} ({_keys(record, chord, read_only=options.read_only)})")
    status = attach(RunHandle.of(record), read_only=options.read_only, steal=options.steal, chord=chord)
    tell_results(home, record.id)
    return status


def _keys(record: RunRecord, chord: Chord, *, read_only: bool) -> str:
    if read_only or not record.tty:
        return "Ctrl-C detaches"
    return f"menu: {chord.name}, detach: {chord.name} d" if chord.byte else "no key detaches"


def _find(home: Home, text: str | None) -> RunRecord:
    """By name, else the only one that runs, else by asking."""
    try:
        return known.one_alive(home) if text is None else known.find(home, text)
    except AmbiguousRunError as error:
        alive = [run for run in error.candidates if not run.state.ended]
        chosen = alive[0] if len(alive) == 1 else _ask(home, alive)
        if chosen is None:
            raise
        return chosen


def _ask(home: Home, runs: list[RunRecord]) -> RunRecord | None:
    """None: there is nobody to ask, or nothing to choose from."""
    from moat.cli.menu import Console
    from moat.cli.picker import Choice, pick

    console = Console()
    if not runs or not console.terminal:
        return None
    width = max(len(run.name) for run in runs)
    choices = [
        Choice(
            run.id,
            f"{run.name:<{width}}  {run.state:<8}  {describe_age(run.created_at):>4}",
            _last_words(home.run(run.id)),
        )
        for run in runs
    ]
    taken = pick(console, "Attach to", choices)
    if taken is None:
        raise RunNotFoundError("no run was chosen", hint="moat attach <name>")
    return next(run for run in runs if run.id == taken)


def _last_words(directory: Path) -> str:
    """The last line of what the run has printed; empty when there is none."""
    from moat.runtime.output_log import tail

    with contextlib.suppress(OSError):
        return safe(last_line(tail(directory, _END)))[:_SHOWN]
    return ""
