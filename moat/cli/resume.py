"""`moat resume`: `moat claude --continue`; with a run or a conversation `--resume`."""

from __future__ import annotations

from collections.abc import Sequence

from moat.cli import claude


def main(argv: Sequence[str]) -> int:
    return claude.main(argv, command="resume")
