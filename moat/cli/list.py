"""`moat list`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from moat.cli.output import emit, emit_json, say, table
from moat.cli.parser import Parser
from moat.paths import Home
from moat.runtime.known import all_runs
from moat.runtime.records import RunRecord, describe_age

_RECENT = 10  # runs whose journals are looked into
_LOOKED_AT = 1 << 20  # bytes of one
_REFUSED = re.compile(rb'"(?:grant\.rejected|secret\.refused)"')


def main(argv: Sequence[str]) -> int:
    parser = Parser(prog="moat list", description="List runs, newest first.")
    parser.add_argument("--json", action="store_true", help="everything that is recorded, as JSON")
    options = parser.parse_args(argv)
    home = Home.from_environment()
    runs = all_runs(home)
    if options.json:
        emit_json([run.to_json() for run in runs])
        return 0
    # Last, and only when there are any: an address is long.
    more = any(run.endpoints for run in runs)
    trees = any(run.worktree for run in runs)
    asks = any(run.asks for run in runs)
    columns = (("WORKTREE", trees), ("ASKS ABOUT", asks), ("ENDPOINTS", more))
    optional = [name for name, shown in columns if shown]
    header = ("NAME", "RUN ID", "STATE", "AGE", *optional)
    emit(table(header, [_row(run, trees=trees, asks=asks, endpoints=more) for run in runs]))
    for run in runs[:_RECENT]:
        if _had_trouble(home, run):
            say(f"hint: {run.name} had credentials refused: `moat status {run.name}`")
    return 0


def _had_trouble(home: Home, run: RunRecord) -> bool:
    """Whether `moat status` tells of refused credentials. What that takes is loaded for hardly a run."""
    if not run.grants or run.exit_code == 0:
        return False
    try:
        with (home.run(run.id) / "journal.jsonl").open("rb") as journal:
            if not _REFUSED.search(journal.read(_LOOKED_AT)):
                return False
    except OSError:
        return False
    from moat.cli.refused import troubles

    return bool(troubles(home, run))


def _row(run: RunRecord, *, trees: bool, asks: bool, endpoints: bool) -> tuple[str, ...]:
    row = [run.name, run.id, _state(run), describe_age(run.created_at)]
    row += [run.worktree or ""] if trees else []
    row += [" ".join(run.asks)] if asks else []
    row += [" ".join(run.endpoints.values())] if endpoints else []
    return tuple(row)


def _state(run: RunRecord) -> str:
    """While it goes on, with the services that have ended before it."""
    if run.state.ended or not run.services_ended:
        return run.state
    return f"{run.state} without {', '.join(text.split()[0] for text in run.services_ended)}"
