"""`moat resume`: `moat claude --continue`; with a run or a conversation `--resume`."""

from __future__ import annotations

from collections.abc import Sequence

from moat.cli import claude
from moat.runtime.forking import Fork


def main(argv: Sequence[str], *, ahead: Fork | None = None) -> int:
    return claude.main(argv, command="resume", ahead=ahead)
