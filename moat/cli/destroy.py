"""`moat destroy run…`."""

from __future__ import annotations

from collections.abc import Sequence

from moat.cli import several
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
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask when there are several")
    options = parser.parse_args(argv)
    home = Home.from_environment()
    records = several.named(known.all_runs(home), options.run, yes=options.yes)
    for record in records:
        if not record.state.ended:
            raise MoatError(f"{record.name} is still {record.state}", hint=f"moat stop {record.id}")
    if several.agreed("Remove", records, yes=options.yes):
        for record in records:
            known.remove(home, record)
            emit(record.id)
    return 0
