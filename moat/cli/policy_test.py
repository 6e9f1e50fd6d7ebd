"""`moat policy test [dir]`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moat.cli.output import emit, emit_json
from moat.cli.parser import Parser
from moat.cli.policy_check import read_config
from moat.errors import UsageError
from moat.runtime.gateway import policy_of
from moat.runtime.policies import expected
from moat.runtime.policies.expected import Result
from moat.runtime.policies.recorded import opened_by


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="moat policy test",
        description=f"Compare what the network policy of agent.yaml says with what {expected.FILE}, next to "
        "it, expects. Nothing is sent, and no credential is needed.",
        epilog="exit status: 0 all as expected, 1 something is not, 2 usage",
    )
    parser.add_argument("dir", nargs="?", default=".", help="directory of agent.yaml (default: this one)")
    parser.add_argument("--json", action="store_true", help="every expectation, as JSON")
    options = parser.parse_args(argv)
    place = Path(options.dir)
    settings = read_config(place)
    file = place / expected.FILE
    if not file.exists():
        raise UsageError(f"there is no {expected.FILE} in {place}", hint="docs/policies.md shows one")
    policy = policy_of(settings.network, opened_by(settings))
    results = expected.results(policy, expected.read(file))
    missed = [result for result in results if not result.met]
    if options.json:
        emit_json([_json(result) for result in results])
    else:
        for result in missed:
            wanted, verdict = result.expectation, result.verdict
            said = f"{verdict.outcome} ({verdict.rule})" if verdict.rule else verdict.outcome
            where = f"{expected.FILE}:{wanted.line}"
            emit(f"{where}: {wanted.text}: {wanted.wanted} expected, {said}")
        emit(f"{len(results) - len(missed)} of {len(results)} as expected")
    return 1 if missed else 0


def _json(result: Result) -> dict[str, object]:
    return {
        "line": result.expectation.line,
        "request": result.expectation.text,
        "expected": result.expectation.wanted,
        "outcome": result.verdict.outcome,
        "rule": result.verdict.rule,
        "met": result.met,
    }
