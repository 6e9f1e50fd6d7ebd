"""`moat report [run]`: one HTML page that tells what a run did, for looking at and for keeping."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from moat.cli.output import emit
from moat.cli.parser import Parser
from moat.cli.report_page import Exchange, Facts, page
from moat.errors import MoatError
from moat.journal import parse_line
from moat.paths import Home
from moat.runtime import known, output_log
from moat.runtime.phases import phases
from moat.runtime.records import RunRecord
from moat.runtime.screen import text_only
from moat.runtime.tally import Tally

_EXCHANGES = 2000  # rows; a browser has no joy in more
_OUTPUT = 64 * 1024  # bytes at the end of the output


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="moat report",
        description="Write one HTML page about a run: requests as a waterfall, denials, credentials used, "
        "the end of its output. It loads nothing and runs no script.",
    )
    parser.add_argument("run", nargs="?", help="name or id (default: the newest)")
    parser.add_argument("-o", "--output", metavar="FILE", help="where to (default: with the run; -: stdout)")
    options = parser.parse_args(argv)
    home = Home.from_environment()
    record = known.find(home, options.run)
    text = page(facts(home, record))
    if options.output == "-":
        emit(text)
        return 0
    path = Path(options.output) if options.output else home.run(record.id) / "report.html"
    _replace(path, text)
    emit(str(path.absolute()))
    return 0


def facts(home: Home, record: RunRecord) -> Facts:
    """What is known of a run, read from its files."""
    tally = Tally(home.run(record.id) / "network.jsonl")
    tally.update()
    shown, total = _exchanges(tally.path)
    return Facts(
        record=record,
        tally=tally,
        exchanges=shown,
        left_out=total - len(shown),
        phases=phases(home, record.id),
        output=_output(home, record),
    )


def _exchanges(path: Path) -> tuple[list[Exchange], int]:
    """The newest ones, oldest first, and how many there are."""
    found: list[Exchange] = []
    total = 0
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                value = parse_line(line)
                if value is not None and "method" in value:
                    total += 1
                    found.append(Exchange.of(value))
                    if len(found) > 2 * _EXCHANGES:
                        del found[:-_EXCHANGES]
    return found[-_EXCHANGES:], total


def _output(home: Home, record: RunRecord) -> str:
    directory = home.run(record.id)
    if not output_log.exists(directory):
        return ""
    return text_only(output_log.tail(directory, _OUTPUT)).decode(errors="replace")


def _replace(path: Path, text: str) -> None:
    """Never through a link that somebody else has put there: the directory may be one that a run writes."""
    try:
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=".report-")
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        raise MoatError(f"{path} cannot be written: {error.strerror}", hint="moat report -o FILE") from error
