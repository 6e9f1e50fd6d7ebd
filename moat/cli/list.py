"""`moat list`."""

from __future__ import annotations

from collections.abc import Sequence

from moat.cli.output import emit, emit_json, table
from moat.cli.parser import Parser
from moat.paths import Home
from moat.runtime.known import all_runs
from moat.runtime.records import RunRecord, describe_age


def main(argv: Sequence[str]) -> int:
    parser = Parser(prog="moat list", description="List runs, newest first.")
    parser.add_argument("--json", action="store_true", help="everything that is recorded, as JSON")
    options = parser.parse_args(argv)
    runs = all_runs(Home.from_environment())
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
    return 0


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
