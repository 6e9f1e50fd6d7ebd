"""`moat version`."""

from __future__ import annotations

from collections.abc import Sequence

from moat import __version__
from moat.cli.output import emit


def main(argv: Sequence[str]) -> int:
    del argv
    emit(f"moat {__version__}")
    return 0
