"""`moat destroy run…`."""

from __future__ import annotations

from collections.abc import Sequence

from moat.cli.output import emit
from moat.cli.parser import Parser
from moat.errors import MoatError
from moat.paths import Home
from moat.runtime import known


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="moat destroy", description="Remove runs that have ended: record, logs, traces and snapshots."
    )
    parser.add_argument("run", nargs="+", help="name or id")
    options = parser.parse_args(argv)
    home = Home.from_environment()
    records = [known.find(home, name) for name in options.run]
    for record in records:
        if not record.state.ended:
            raise MoatError(f"{record.name} is still {record.state}", hint=f"moat stop {record.id}")
    for record in records:
        known.remove(home, record)
        emit(record.id)
    return 0
