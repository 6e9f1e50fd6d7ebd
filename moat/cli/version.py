"""`moat version`."""

from __future__ import annotations

from collections.abc import Sequence

from moat import __version__
from moat.cli.output import emit, emit_json


def main(argv: Sequence[str]) -> int:
    if argv and _wants_json(argv):
        emit_json({"version": __version__})
    else:
        emit(f"moat {__version__}")
    return 0


def _wants_json(argv: Sequence[str]) -> bool:
    from moat.cli.parser import Parser

    parser = Parser(prog="moat version", description="Print the version.")
    parser.add_argument("--json", action="store_true", help="as JSON")
    return bool(parser.parse_args(argv).json)
