"""`moat policy check [config] --run RUN`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from moat import config
from moat.cli.output import emit, emit_json, safe, say, table
from moat.cli.parser import Parser
from moat.cli.policy_learn import is_incomplete
from moat.config import RunConfig
from moat.errors import UsageError
from moat.paths import Home
from moat.runtime import known
from moat.runtime.gateway import policy_of, read_exchanges
from moat.runtime.policies.recorded import opened_by, recorded
from moat.runtime.policies.replay import Change, replay


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="moat policy check",
        description="Put the requests that a run made before another network policy, and show what would "
        "change. Nothing is sent. Budgets and addresses are not looked at.",
        epilog="exit status: 0 nothing would change, 1 something would, 2 usage",
    )
    parser.add_argument("config", nargs="?", default=".", help="agent.yaml or its directory (default: here)")
    parser.add_argument("--run", help="name or id (default: the newest)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(argv)
    home = Home.from_environment()
    record = known.find(home, options.run)
    settings = read_config(Path(options.config))
    policy = policy_of(settings.network, opened_by(settings, record.grants))
    done, others = recorded(read_exchanges(home, record.id))
    changes = replay(done, policy)
    if options.json:
        emit_json(
            {
                "run": record.id,
                "requests": len(done),
                "not_judged": others,
                "changes": [dataclasses.asdict(change) for change in changes],
            }
        )
        return 1 if changes else 0
    if changes:
        emit(table(("WAS", "NOW", "COUNT", "REQUEST", "RULE"), map(_row, changes)))
    else:
        emit(f"nothing would change for the {len(done)} requests of {record.name}")
    if others:
        say(f"not the policy's business, and not looked at: {others} (SSH, addresses, budgets, broken HTTP)")
    if is_incomplete(home, record):
        say("warning: the trace of this run has reached its limit: what came later was not looked at")
    return 1 if changes else 0


def read_config(path: Path) -> RunConfig:
    """The configuration in a file or directory. Raises UsageError, ConfigError."""
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    if not path.is_dir():
        return config.load_file(path.absolute())
    settings = config.load(path.absolute())
    if settings.path is None:
        raise UsageError(f"there is no agent.yaml in {path}", hint="moat policy learn proposes one")
    return settings


def _row(change: Change) -> tuple[str, ...]:
    return (
        change.was,
        change.now,
        str(change.count),
        safe(f"{change.method} {change.url}"),
        safe(change.rule),
    )
