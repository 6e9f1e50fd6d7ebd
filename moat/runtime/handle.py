"""How to reach a live run. Nothing heavier is needed to attach to one."""

from __future__ import annotations

from pathlib import Path

from moat.dataclass import dataclass
from moat.runtime.records import RunRecord


@dataclass(frozen=True, slots=True)
class RunHandle:
    """How to reach a live run: what `moat.cli.terminal.attach` takes."""

    id: str
    name: str
    socket: Path  # the run's control socket
    tty: bool
    stdin: bool = False  # somebody has to send stdin or close it

    @classmethod
    def of(cls, record: RunRecord) -> RunHandle:
        return cls(record.id, record.name, Path(record.socket), record.tty)
