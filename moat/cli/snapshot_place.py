"""Which workspace's snapshots a command means."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Self

from moat.dataclass import dataclass
from moat.errors import RunNotFoundError, UsageError
from moat.paths import Home
from moat.runtime import known, records
from moat.runtime.records import RunRecord
from moat.runtime.snapshots.store import Snapshot, Store, open_store, stores

SNAPSHOT = re.compile(r"snap_[0-9a-f]{1,12}")


@dataclass(frozen=True, slots=True)
class Place:
    home: Home
    store: Store
    run: RunRecord | None  # the run that was named, or the newest one of the workspace

    def name_of(self, run: str) -> str:
        record = records.read(self.home, run) if run else None
        return record.name if record else run or "-"

    @classmethod
    def of_snapshot(cls, home: Home, text: str) -> tuple[Self, Snapshot]:
        """The one snapshot of any workspace whose id begins with `text`. Raises UsageError."""
        if not SNAPSHOT.fullmatch(text):
            raise UsageError(f"{text!r} is not the id of a snapshot", hint="moat snapshot list")
        found = [(store, s) for store in stores(home) for s in store.all() if s.id.startswith(text)]
        if len(found) != 1:
            what = "no snapshot" if not found else f"{len(found)} snapshots"
            raise UsageError(f"{what} {text!r}", hint="`moat snapshot list` shows them")
        store, snapshot = found[0]
        return cls(home, store, records.read(home, snapshot.run) if snapshot.run else None), snapshot


def find_place(home: Home, run: str | None, *, new: bool = False) -> Place:
    """The workspace of `run`, else the one that this directory is or lies in, else the newest run's.

    new: a directory that no run has used is taken as it is. Raises RunNotFoundError.
    """
    if run is not None:
        record = known.find(home, run)
        return Place(home, open_store(home, record.workspace), record)
    runs = known.all_runs(home)
    here = Path(os.path.realpath(Path.cwd()))
    for place in (here, *here.parents):
        store = open_store(home, place)
        mine = [record for record in runs if record.workspace == str(place)]
        if mine or store.root.exists():
            alive = [record for record in mine if not record.state.ended]
            return Place(home, store, next(iter([*alive, *mine]), None))
    if new:
        from moat.runtime.workspace import check_workspace

        return Place(home, open_store(home, check_workspace(here, home)), None)
    if not runs:
        raise RunNotFoundError("there are no snapshots yet", hint="moat run -- <command>")
    return Place(home, open_store(home, runs[0].workspace), runs[0])


def split(home: Home, words: list[str]) -> tuple[str | None, list[str], list[str]]:
    """(run, snapshots, paths): what each word of a command line means.

    `snap_…` is a snapshot; the first other word is a run when there is one of that name; after `--`
    everything is a path.
    """
    run: str | None = None
    snapshots: list[str] = []
    paths: list[str] = []
    for number, word in enumerate(words):
        if word == "--":
            return run, snapshots, [*paths, *words[number + 1 :]]
        if SNAPSHOT.fullmatch(word) and not paths:
            snapshots.append(word)
        elif run is None and not paths and not snapshots and _is_run(home, word):
            run = word
        else:
            paths.append(word)
    return run, snapshots, paths


def _is_run(home: Home, word: str) -> bool:
    if re.fullmatch(r"run_[0-9a-f]{1,12}", word):
        return True
    return any(record.name == word for record in records.read_all(home))


def inside(store: Store, paths: list[str]) -> tuple[str, ...]:
    """`paths` relative to the workspace: as given, or from this directory when it lies in there."""
    here = os.path.realpath(Path.cwd())
    base = here if Path(here).is_relative_to(store.workspace) else store.workspace
    found = []
    for path in paths:
        full = os.path.normpath(os.path.join(base, path))
        if full != store.workspace and not full.startswith(store.workspace + "/"):
            raise UsageError(f"{path} is not in {store.workspace}")
        found.append("" if full == store.workspace else os.path.relpath(full, store.workspace))
    return tuple(found)
