"""The process that takes snapshots while a run goes on.

    one JSON line on stdin (`Plan`); JSON lines on stdout: {"busy": …}, {"taken": …}, {"failed": …}

A process of its own, since a walk through a big workspace would hold up the proxy's event loop. It ends
when its stdin does, and so with the supervisor. Given `recover`, it completes a restore that was cut off.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moat.config import SnapshotConfig
from moat.errors import MoatError
from moat.runtime import codec
from moat.runtime.snapshots import restore as restoring
from moat.runtime.snapshots.builds import Builds
from moat.runtime.snapshots.errors import SnapshotError
from moat.runtime.snapshots.githead import head
from moat.runtime.snapshots.pending import read_pending
from moat.runtime.snapshots.plan import Plan
from moat.runtime.snapshots.retention import thin
from moat.runtime.snapshots.store import Kind, Snapshot, Store
from moat.runtime.snapshots.take import Wish, take
from moat.runtime.snapshots.walk import open_root, walk

_LOOK = 0.5  # seconds between two looks at processes and HEAD
_REST = 5.0  # seconds between two snapshots that nobody asked for, at least
_SHARE = 20  # a look through the workspace may take one part in so many of the time
_NICE = 5


class Watcher:
    def __init__(self, plan: Plan, say: Callable[[dict[str, Any]], None], clock: Callable[[], float]) -> None:
        self._plan = plan
        self._say = say
        self._clock = clock
        self._store = Store(plan.root, plan.workspace)
        self._head = plan.head
        self._moved_to = self._head
        self._builds = Builds(plan.first_pid)
        self._idle = Idle(plan.config.idle_seconds, lambda: fingerprint(plan.workspace, plan.config), clock)
        self._wanted: tuple[Kind, str] | None = None
        self._not_before = 0.0

    def look(self) -> None:
        """See what happened since the last call, and take the snapshot that it asks for."""
        config = self._plan.config
        if config.git_commits and self._committed():
            self._wanted = (Kind.GIT, f"HEAD {self._head[:12]}")
        if config.builds and self._plan.first_pid:
            label = self._builds.ended()
            if label and self._wanted is None:
                self._wanted = (Kind.BUILD, label)
        if config.idle and self._wanted is None and self._idle.reached():
            self._wanted = (Kind.IDLE, "")
        if self._wanted is not None and self._clock() >= self._not_before:
            kind, label = self._wanted
            self._wanted = None
            self._take(kind, label)

    def _committed(self) -> bool:
        """HEAD moved, and has rested for one look: a rebase is one event."""
        now = head(Path(self._plan.workspace))
        moved = bool(now) and now != self._head and now == self._moved_to
        self._moved_to = now
        if moved:
            self._head = now
        return moved

    def _take(self, kind: Kind, label: str) -> None:
        began = self._clock()
        self._say({"busy": kind})
        wish = Wish.of(self._plan.config, kind, self._plan.run, label)
        try:
            with self._store.exclusive():
                mine = self._store.of_run(self._plan.run)
                snapshot = take(self._store, wish, unless=mine[-1].tree if mine else None)
                if snapshot is not None:
                    self._say({"taken": snapshot.to_json()})
                    gone = thin(self._store, self._plan.run, self._plan.config)
                    if gone:
                        self._say({"removed": [s.id for s in gone]})
        except MoatError as error:
            self._say({"failed": str(error), "kind": kind})
        self._say({"rests": True})
        self._not_before = self._clock() + max(_REST, _SHARE / 2 * (self._clock() - began))


class Idle:
    """Changes that have come to rest."""

    def __init__(self, threshold: float, fingerprint: Callable[[], int], clock: Callable[[], float]) -> None:
        self._threshold = threshold
        self._fingerprint = fingerprint
        self._clock = clock
        self._last: int | None = None
        self._rested_since = 0.0
        self._open = False  # there are changes that no idle snapshot holds
        self._next = 0.0

    def reached(self) -> bool:
        """True once when nothing has changed for the threshold, after changes. Walks only now and then."""
        began = self._clock()
        if began < self._next:
            return False
        now = self._fingerprint()
        ended = self._clock()
        self._next = ended + max(min(5.0, self._threshold / 4), _SHARE * (ended - began))
        if now != self._last:
            self._last, self._rested_since, self._open = now, began, True
            return False
        if self._open and ended - self._rested_since >= self._threshold:
            self._open = False
            return True
        return False


def fingerprint(workspace: str, config: SnapshotConfig) -> int:
    """A number that is another one when a file came, went or changed."""
    total = 0
    rules = Wish.of(config, Kind.IDLE, "").rules()
    with contextlib.suppress(SnapshotError):
        root = open_root(workspace)
        try:
            for found in walk(root, rules, lambda _count: None):
                total ^= hash((found.path, found.info.st_ino, found.info.st_size, found.info.st_ctime_ns))
        finally:
            os.close(root)
    return total


def recover(store: Store, run: str) -> Snapshot | None:
    """Complete a restore that was cut off; returns what was restored, None when there was none."""
    with store.exclusive():
        pending = read_pending(store)
        if pending is None:
            return None
        target = store.find(pending.target)
        restoring.restore(store, target, pending.paths, run=run)
        return target


def main() -> None:
    plan = codec.decode(Plan, json.loads(sys.stdin.buffer.readline()))

    def say(value: dict[str, Any]) -> None:
        os.write(1, json.dumps(value).encode() + b"\n")

    if plan.recover:
        try:
            target = recover(Store(plan.root, plan.workspace), plan.run)
        except MoatError as error:
            say({"failed": str(error), "kind": "restore"})
        else:
            if target is not None:
                say({"recovered": target.id})
        return
    os.nice(_NICE)
    watcher = Watcher(plan, say, time.monotonic)
    while not select.select([0], [], [], _LOOK)[0]:
        watcher.look()
