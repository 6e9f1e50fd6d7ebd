"""`moat policy learn|check|test`."""

from __future__ import annotations

from collections.abc import Sequence

from moat.cli.output import emit
from moat.errors import UsageError

_HELP = """\
usage: moat policy <action> [options]

Work on the network policy of agent.yaml without starting a run.

  moat policy learn [run]                 propose the smallest list of hosts that a run needed
  moat policy check [config] [--run RUN]  what would another policy have said to a run's requests?
  moat policy test [dir]                  does agent.yaml say what agent.policy-tests.yaml expects?

`moat policy <action> --help` tells more."""


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] in {"-h", "--help"}:
        emit(_HELP)
        return 0
    match argv[0]:
        case "learn":
            from moat.cli.policy_learn import main as action
        case "check":
            from moat.cli.policy_check import main as action
        case "test":
            from moat.cli.policy_test import main as action
        case other:
            raise UsageError(f"no action {other!r}", hint="moat policy learn, check or test")
    return action(argv[1:])
