"""`moat status [run]`: everything worth knowing of one run, on one screen."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from moat.cli.output import emit, emit_json, safe
from moat.cli.parser import Parser
from moat.paths import Home
from moat.runtime import known
from moat.runtime.records import RunRecord, State, describe_age
from moat.runtime.tally import Tally, in_words, summary

if TYPE_CHECKING:
    from moat.cli.refused import Trouble


def main(argv: Sequence[str]) -> int:
    parser = Parser(prog="moat status", description="Show what is known of a run.")
    parser.add_argument("run", nargs="?", help="name or id (default: the newest)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(argv)
    home = Home.from_environment()
    record = known.find(home, options.run)
    tally = Tally(home.run(record.id) / "network.jsonl")
    tally.update()
    size = known.size(home, record.id)
    found = _troubles(home, record)
    if options.json:
        network = tally.sums.to_json() | {"credentials": tally.credentials}
        refused = [trouble.to_json() for trouble in found]
        emit_json(record.to_json() | {"network": network, "bytes": size, "refused": refused})
        return 0
    for name, value in (*_lines(record, tally, size), *_refused(found)):
        if value:
            emit(f"{name + ':':<11} {safe(value)}")
    return 0


def _lines(record: RunRecord, tally: Tally, size: int) -> Iterator[tuple[str, str]]:
    yield "name", record.name
    yield "id", record.id
    yield "state", _state(record)
    yield "error", record.error
    yield "command", shlex.join(record.argv)
    yield "workspace", record.workspace
    yield "worktree", record.worktree or ""
    yield "runtime", record.runtime
    yield "grants", ", ".join(record.grants)
    for name, url in record.endpoints.items():
        yield "endpoint", f"{name} {url}"
    for text in record.services_ended:
        yield "service", text
    yield "waiting", " ".join(record.asks)
    yield "network", summary(tally) or "no requests"
    traffic = tally.sums
    yield "bytes", f"{in_words(traffic.up)} up, {in_words(traffic.down)} down" if traffic.requests else ""
    yield "on disk", in_words(size)
    yield "log", record.log_error


def _troubles(home: Home, record: RunRecord) -> tuple[Trouble, ...]:
    """With its credentials: of a run that goes on as well, at which perhaps nobody looks."""
    if not record.grants:
        return ()
    from moat.cli.refused import troubles  # the vault, for those who need it

    return troubles(home, record)


def _refused(found: Sequence[Trouble]) -> Iterator[tuple[str, str]]:
    for trouble in found:
        yield "refused", trouble.text
    for command in dict.fromkeys(trouble.fix for trouble in found):
        yield "fix", command


def _state(record: RunRecord) -> str:
    """`running for 5m`, `failed 2h ago after 3s, exit status 1`."""
    since = record.started_at or record.created_at
    if not record.state.ended:
        return f"{record.state} for {describe_age(since)}"
    told: str = record.state
    if record.ended_at:
        told += f" {describe_age(record.ended_at)} ago after {describe_age(since, record.ended_at)}"
    if record.exit_code is not None and record.state is not State.LOST:
        told += f", exit status {record.exit_code}"
    return told
