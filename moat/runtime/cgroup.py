"""Control groups for one run's memory and process count, where this process may make them.

Version 1 (one hierarchy per controller) and 2 (one for all) differ only in where the directories are
and what the limit files are called. As root they are `<hierarchy>/moat/<run>`; an ordinary user has a
place of his own only under a systemd user manager (version 2). Elsewhere the runtime falls back to
per-process limits and says so.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path

from moat.dataclass import dataclass

_FILES = {  # (version, controller): limit files, the first one mandatory
    (1, "memory"): ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
    (1, "pids"): ("pids.max",),
    (2, "memory"): ("memory.max", "memory.swap.max"),
    (2, "pids"): ("pids.max",),
    (1, "cpu"): ("cpu.cfs_quota_us",),
    (2, "cpu"): ("cpu.max",),
}
_CONTROLLERS = ("memory", "pids", "cpu")
_PERIOD = 100_000  # µs, the kernel's own


@dataclass(frozen=True, slots=True)
class Group:
    """The directories of one run, by controller; empty where none could be made."""

    directories: Mapping[str, Path] = field(default_factory=dict)

    def remove(self) -> bool:
        """Remove the directories; False while a process that was just killed still holds one."""
        remaining = [path for path in set(self.directories.values()) if not _removed(path)]
        return not remaining


def find(run_id: str) -> Group:
    """The groups that a run made, as far as they are still there."""
    found = {}
    for controller in _CONTROLLERS:
        for _version, parent in _parents(controller):
            if (parent / run_id).is_dir():
                found[controller] = parent / run_id
    return Group(found)


def make(run_id: str, *, memory: int, pids: int, cpus: float = 0.0) -> Group:
    """Groups with these limits (bytes, processes, processors; 0: none), as far as they can be had here."""
    directories = {}
    wanted = {"memory": memory, "pids": pids} | ({"cpu": round(cpus * _PERIOD)} if cpus else {})
    for controller, limit in wanted.items():
        for version, parent in _parents(controller):
            with contextlib.suppress(OSError):
                directories[controller] = _limited(parent / run_id, version, controller, limit)
                break
    return Group(directories)


def _limited(directory: Path, version: int, controller: str, limit: int) -> Path:
    if version == 2:
        _delegate(directory.parent, controller)
    directory.parent.mkdir(mode=0o755, exist_ok=True)
    directory.mkdir(mode=0o755, exist_ok=True)
    first, *others = _FILES[version, controller]
    try:
        (directory / first).write_text(f"{limit} {_PERIOD}" if first == "cpu.max" else str(limit))
    except OSError:
        _removed(directory)
        raise
    for name in others:  # swap accounting is optional in the kernel
        with contextlib.suppress(OSError):
            (directory / name).write_text(str(limit) if version == 1 else "0")
    return directory


def _delegate(parent: Path, controller: str) -> None:
    """Version 2: a group has a controller only when every group above hands it down."""
    parent.mkdir(mode=0o755, exist_ok=True)
    for directory in (parent.parent, parent):
        control = directory / "cgroup.subtree_control"
        if controller not in control.read_text().split():
            control.write_text(f"+{controller}")


def _parents(controller: str) -> list[tuple[int, Path]]:
    """(version, directory) where the groups of runs belong, for hierarchies that have `controller`."""
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            before, _, after = line.partition(" - ")
            mountpoint = Path(before.split()[4])
            kind, _source, options = after.split()[:3]
            if kind == "cgroup" and controller in options.split(",") and os.geteuid() == 0:
                found.append((1, mountpoint / "moat"))
            elif kind == "cgroup2" and controller in _controllers(mountpoint):
                found.append((2, _own(mountpoint) / "moat"))
    return found


def _controllers(mountpoint: Path) -> list[str]:
    return (mountpoint / "cgroup.controllers").read_text().split()


def _own(mountpoint: Path) -> Path:
    """Where this user may make groups: anywhere as root, else below the systemd user manager."""
    uid = os.geteuid()
    if uid == 0:
        return mountpoint
    return mountpoint / "user.slice" / f"user-{uid}.slice" / f"user@{uid}.service"


def _removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
