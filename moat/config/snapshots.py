"""`snapshots:` of agent.yaml: when copies of the workspace are taken, of what, and how many are kept."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotConfig:
    disabled: bool = False
    pre_run: bool = True  # before the sandbox exists
    git_commits: bool = True
    builds: bool = True
    idle: bool = True
    idle_seconds: int = 30
    gitignored: bool = True  # what .gitignore names is kept as well
    exclude: tuple[str, ...] = ()  # further glob patterns
    max_count: int = 10
    delete_initial: bool = False  # retention may remove the pre-run snapshot
