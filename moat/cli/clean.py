"""`moat clean`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from moat.cli.output import emit, say
from moat.cli.parser import Parser
from moat.errors import UsageError
from moat.paths import Home
from moat.runtime import known


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="moat clean", description="Remove every run that has ended, stopped and failed ones alike."
    )
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    options = parser.parse_args(argv)
    home = Home.from_environment()
    ended = [run for run in known.all_runs(home) if run.state.ended]
    if not ended:
        say("nothing to clean")
        return 0
    if not options.yes and not _agreed(len(ended)):
        return 0
    for record in ended:
        known.remove(home, record)
        emit(record.id)
    return 0


def _agreed(count: int) -> bool:
    if not sys.stdin.isatty():
        raise UsageError(f"{count} runs would be removed", hint="moat clean --yes")
    sys.stderr.write(f"Remove {count} ended runs with their logs and snapshots? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}
