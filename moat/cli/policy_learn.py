"""`moat policy learn [run]`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from moat import config
from moat.cli.output import emit, emit_json, safe, say
from moat.cli.parser import Parser
from moat.config import NetworkConfig
from moat.errors import ConfigError, UsageError
from moat.journal import read_lines
from moat.paths import Home
from moat.runtime import known
from moat.runtime.gateway import read_exchanges
from moat.runtime.policies.learn import Learned, learn
from moat.runtime.policies.recorded import opened, recorded
from moat.runtime.records import RunRecord


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="moat policy learn",
        description="Propose the smallest network policy that would have let a run do what it did. Hosts of "
        "its grants need no entry; what it was refused is not in the list.",
    )
    parser.add_argument("run", nargs="?", help="name or id (default: the newest)")
    parser.add_argument("--rules", action="store_true", help="methods and paths too")
    parser.add_argument("--write", action="store_true", help="add it to the workspace's agent.yaml")
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(argv)
    home = Home.from_environment()
    record = known.find(home, options.run)
    done, others = recorded(read_exchanges(home, record.id))
    learned = learn(done, opened_in(record), rules=options.rules)
    incomplete = is_incomplete(home, record)
    if options.json:
        emit_json(_json(record, learned, incomplete=incomplete))
    else:
        emit("\n".join(_yaml(learned.network)))
        _tell(learned, others=others)
    if incomplete:
        say("warning: the trace of this run has reached its limit: what came later is not in the list")
    if options.write:
        _write(home, record, learned.network)
    return 0


def opened_in(record: RunRecord) -> tuple[str, ...]:
    """What the grants and MCP servers of a run opened, as far as its workspace still tells of servers."""
    try:
        servers = config.load(Path(record.workspace)).mcp
    except (ConfigError, OSError):
        servers = ()
    return opened(record.grants, servers)


def is_incomplete(home: Home, record: RunRecord) -> bool:
    """Whether exchanges are missing in the trace."""
    return any(
        "full" in line or "dropped" in line for line in read_lines(home.run(record.id) / "network.jsonl")
    )


def _yaml(network: NetworkConfig) -> Iterator[str]:
    """The section for agent.yaml. Hosts and rules are of letters that need no escaping in quotes."""
    yield "network:"
    yield f"  policy: {network.policy}"
    if network.host:
        yield f"  host: [{', '.join(map(str, network.host))}]"
    if network.rules:
        yield "  rules:"
    for entry in network.rules:
        yield f'    - "{entry.host}"' + (":" if entry.rules else "")
        for rule in entry.rules:
            yield f'        - "{rule}"'


def _tell(learned: Learned, *, others: int) -> None:
    if learned.granted:
        say(f"no entry is needed for what grants open: {', '.join(learned.granted)}")
    for url in learned.refused:
        say(safe(f"not in the list, the run was refused it: {url}"))
    for url in learned.unsayable:
        say(safe(f"warning: no rule can express it, and it would be refused: {url}"))
    if others:
        say(f"not the policy's business, and not looked at: {others} (SSH, addresses, budgets, broken HTTP)")


def _json(record: RunRecord, learned: Learned, *, incomplete: bool) -> dict[str, object]:
    return {
        "run": record.id,
        "policy": learned.network.policy,
        "rules": [{"host": entry.host, "rules": entry.rules} for entry in learned.network.rules],
        "host": learned.network.host,
        "granted": learned.granted,
        "refused": learned.refused,
        "unsayable": learned.unsayable,
        "incomplete": incomplete,
    }


def _write(home: Home, record: RunRecord, network: NetworkConfig) -> None:
    workspace = Path(record.workspace)
    for run in known.all_runs(home):
        if not run.state.ended and workspace.is_relative_to(run.workspace):
            raise UsageError(
                f"{run.name} is alive in {workspace} and could change what is written there",
                hint=f"moat stop {run.name}",
            )
    from moat.config.adopt import adopt  # ruamel.yaml is needed for this alone

    path, kept = adopt(workspace, network)
    say(f"written to {path}")
    if kept:
        say(f"these hosts had entries, which stay as they are: {', '.join(kept)}")
