"""`moat clean`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from moat.cli import several
from moat.cli.output import emit, emit_json, say, table
from moat.cli.parser import Parser
from moat.cli.volumes import in_megabytes
from moat.dataclass import dataclass
from moat.errors import UsageError
from moat.paths import Home
from moat.runtime import known
from moat.runtime.records import RunRecord, describe_age


@dataclass(frozen=True, slots=True)
class _Ended:
    run: RunRecord
    size: int  # bytes on the disk, without snapshots: runs of one workspace share them


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="moat clean", description="Remove every run that has ended: stopped, failed and lost ones alike."
    )
    parser.add_argument("-n", "--dry-run", action="store_true", help="only tell what would be removed")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    parser.add_argument("--json", action="store_true", help="what was or would be removed, as JSON")
    options = parser.parse_args(argv)
    home = Home.from_environment()
    ended = [_Ended(run, known.size(home, run)) for run in known.all_runs(home) if run.state.ended]
    if options.dry_run:
        _tell(ended, json=options.json)
        return 0
    if ended and not options.yes and not _agreed(ended):
        return 0
    for item in ended:
        known.remove(home, item.run)
        if not options.json:
            emit(item.run.id)
    if options.json:
        emit_json(_as_json(ended, removed=True))
    else:
        say(f"removed {_sum(ended)}" if ended else "nothing to clean")
    return 0


def _tell(ended: Sequence[_Ended], *, json: bool) -> None:
    if json:
        emit_json(_as_json(ended, removed=False))
        return
    if not ended:
        say("nothing to clean")
        return
    rows = [
        (e.run.name, e.run.id, e.run.state, describe_age(e.run.created_at), in_megabytes(e.size))
        for e in ended
    ]
    emit(table(("NAME", "RUN ID", "STATE", "AGE", "SIZE"), rows))
    say(f"would remove {_sum(ended)}")


def _as_json(ended: Sequence[_Ended], *, removed: bool) -> dict[str, object]:
    runs = [{"id": e.run.id, "name": e.run.name, "state": e.run.state, "bytes": e.size} for e in ended]
    return {"runs": runs, "bytes": sum(e.size for e in ended), "removed": removed}


def _sum(ended: Sequence[_Ended]) -> str:
    runs = "1 run" if len(ended) == 1 else f"{len(ended)} runs"
    return f"{runs}, {in_megabytes(sum(e.size for e in ended))}"


def _agreed(ended: Sequence[_Ended]) -> bool:
    if not sys.stdin.isatty():
        raise UsageError(
            f"{_sum(ended)} would be removed", hint="moat clean --yes, or --dry-run to look first"
        )
    return several.ask(f"Remove {len(ended)} ended runs with their logs and snapshots?")
