"""Whether a run may have rewritten the configuration of the next one.

The workspace is the agent's to change, agent.yaml included, and agent.yaml decides grants, mounts, policy
and open ports. So a file that changed while a run could reach it has to be looked at by a person first.
The kernel sets a file's change time, and nothing in a sandbox can set it back.

Runs that were removed (`destroy`, `clean`) are no longer known here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

from moat.config import RunConfig
from moat.errors import UsageError
from moat.paths import Home
from moat.runtime import records
from moat.runtime.records import RunRecord


def digest(settings: RunConfig) -> str:
    """What the file says, as a hash; empty without a file. Comments and layout do not count."""
    if settings.path is None:
        return ""
    return hashlib.sha256(repr(dataclasses.replace(settings, path=None)).encode()).hexdigest()


def check(home: Home, workspace: Path, settings: RunConfig) -> None:
    """Raises UsageError when the configuration changed while a run could write it."""
    place = Path(os.path.realpath(workspace))
    runs = [run for run in records.read_all(home) if place.is_relative_to(run.workspace)]
    used = [run.config for run in runs if run.config is not None and run.workspace == str(place)]
    if used and used[0] == digest(settings):
        return
    hint = "review it; if it is what you want, add --accept-config"
    if settings.path is None:
        if used:
            raise UsageError("agent.yaml is gone since the last run, and its policy with it", hint=hint)
        return
    changed = max(os.stat(settings.path).st_ctime, os.lstat(settings.path).st_ctime)
    run = next((run for run in runs if lived(run, changed)), None)
    if run is not None:
        raise UsageError(
            f"{settings.path.name} was changed while run {run.name} could write it, maybe by the agent",
            hint=hint,
        )


def check_file(home: Home, workspace: Path, path: Path) -> None:
    """Raises UsageError when `path`, which is about to be acted on, changed while a run could write it."""
    place = Path(os.path.realpath(workspace))
    changed = max(os.stat(path).st_ctime, os.lstat(path).st_ctime)
    runs = [run for run in records.read_all(home) if place.is_relative_to(run.workspace)]
    run = next((run for run in runs if lived(run, changed)), None)
    if run is not None:
        raise UsageError(
            f"{path.relative_to(workspace)} was changed while run {run.name} could write it, maybe by the "
            "agent, and names something to be fetched",
            hint="review it; if it is what you want, add --accept-config",
        )


def lived(run: RunRecord, moment: float) -> bool:
    return run.created_at <= moment and (run.ended_at is None or moment <= run.ended_at)
