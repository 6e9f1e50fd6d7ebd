"""`moat clean`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from moat.cli import several
from moat.cli.output import emit, emit_json, reason, say, table
from moat.cli.parser import Parser
from moat.dataclass import dataclass
from moat.errors import EXIT_START, MoatError, UsageError
from moat.paths import Home
from moat.runtime import known, records
from moat.runtime.records import RunRecord, describe_age
from moat.runtime.tally import in_words


@dataclass(frozen=True, slots=True)
class _Ended:
    id: str
    run: RunRecord | None  # None: its supervisor was killed before it could write a record
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
    ended = _find(home)
    if options.dry_run:
        _tell(ended, json=options.json)
        return 0
    if ended and not options.yes and not _agreed(ended):
        return 0
    removed = [item for item in ended if _removed(home, item, tell=not options.json)]
    if options.json:
        emit_json(_as_json(removed, removed=True))
    else:
        say(f"removed {_sum(removed)}" if ended else "nothing to clean")
    return 0 if len(removed) == len(ended) else EXIT_START


def _find(home: Home) -> list[_Ended]:
    found = [_Ended(run.id, run, known.size(home, run.id)) for run in known.all_runs(home) if run.state.ended]
    return found + [_Ended(run_id, None, known.size(home, run_id)) for run_id in records.remnants(home)]


def _removed(home: Home, item: _Ended, *, tell: bool) -> bool:
    """One that cannot be removed now (its engine is away) does not keep the others."""
    try:
        if item.run:
            known.remove(home, item.run)
        else:
            known.forget(home, item.id)
    except (MoatError, OSError) as error:
        told = reason(error) if isinstance(error, OSError) else str(error)
        say(f"warning: {item.run.name if item.run else item.id} is kept: {told}")
        return False
    if tell:
        emit(item.id)
    return True


def _tell(ended: Sequence[_Ended], *, json: bool) -> None:
    if json:
        emit_json(_as_json(ended, removed=False))
        return
    if not ended:
        say("nothing to clean")
        return
    emit(table(("NAME", "RUN ID", "STATE", "AGE", "SIZE"), [_row(item) for item in ended]))
    say(f"would remove {_sum(ended)}")


def _row(item: _Ended) -> tuple[str, ...]:
    run, size = item.run, in_words(item.size)
    if run is None:
        return "-", item.id, "-", "-", size
    return run.name, run.id, run.state, describe_age(run.created_at), size


def _as_json(ended: Sequence[_Ended], *, removed: bool) -> dict[str, object]:
    runs = [
        {"id": e.id, "name": e.run and e.run.name, "state": e.run and e.run.state, "bytes": e.size}
        for e in ended
    ]
    return {"runs": runs, "bytes": sum(e.size for e in ended), "removed": removed}


def _sum(ended: Sequence[_Ended]) -> str:
    return f"{_count(ended)}, {in_words(sum(e.size for e in ended))}"


def _count(ended: Sequence[_Ended]) -> str:
    return "1 run" if len(ended) == 1 else f"{len(ended)} runs"


def _agreed(ended: Sequence[_Ended]) -> bool:
    if not sys.stdin.isatty():
        raise UsageError(
            f"{_sum(ended)} would be removed", hint="moat clean --yes, or --dry-run to look first"
        )
    return several.ask(f"Remove {_count(ended)} with logs and snapshots?")
