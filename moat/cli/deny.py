"""`moat deny [run] [host]`."""

from __future__ import annotations

from collections.abc import Sequence

from moat.cli.approve import answer


def main(argv: Sequence[str]) -> int:
    return answer(argv, allow=False)
