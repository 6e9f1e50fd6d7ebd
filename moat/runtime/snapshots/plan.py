"""What the process that takes snapshots during a run is told."""

from __future__ import annotations

from pathlib import Path

from moat.config import SnapshotConfig
from moat.dataclass import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    root: Path  # of the store
    workspace: str
    run: str
    config: SnapshotConfig
    first_pid: int  # of the sandbox; 0: nobody looks for builds
    head: str = ""  # commit before the run
    recover: bool = False  # complete a restore instead, and end
