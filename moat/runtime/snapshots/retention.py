"""Which snapshots go, and what goes with them."""

from __future__ import annotations

from moat.config import SnapshotConfig
from moat.paths import Home
from moat.runtime.snapshots.entry import FILE
from moat.runtime.snapshots.objects import discard
from moat.runtime.snapshots.pending import read_pending
from moat.runtime.snapshots.store import Kind, Snapshot, Store, stores

# What goes first when there are too many: what Moat took by itself, last what a person asked for.
_RANK = {Kind.IDLE: 0, Kind.BUILD: 0, Kind.GIT: 0, Kind.SAFETY: 1, Kind.MANUAL: 2, Kind.PRE_RUN: 3}


def thin(store: Store, run: str, config: SnapshotConfig) -> list[Snapshot]:
    """Remove what is beyond `max_count` of a run, and return it. Only while `exclusive`.

    The newest one always stays, and the pre-run snapshot unless `delete_initial`.
    """
    mine = store.of_run(run)
    allowed = [s for s in mine[:-1] if config.delete_initial or s.kind is not Kind.PRE_RUN]
    allowed.sort(key=lambda snapshot: (_RANK[snapshot.kind], snapshot.at))
    return _remove(store, allowed[: max(0, len(mine) - config.max_count)])


def surplus(snapshots: list[Snapshot], keep: int) -> list[Snapshot]:
    """What `prune` removes of one run's snapshots: all but the newest `keep` and the pre-run one."""
    others = [snapshot for snapshot in snapshots if snapshot.kind is not Kind.PRE_RUN]
    return others[: max(0, len(others) - keep)]


def remove(store: Store, snapshots: list[Snapshot]) -> int:
    """Remove snapshots and what only they needed; returns the bytes freed. Only while `exclusive`."""
    _remove(store, snapshots, then_collect=False)
    return collect(store)


def forget_run(home: Home, run: str) -> None:
    """Remove the snapshots of a run that is forgotten, and a store that has no others."""
    for store in stores(home):
        if not store.of_run(run):
            continue
        with store.exclusive():
            remove(store, store.of_run(run))
            if not store.all():
                store.destroy()


def collect(store: Store) -> int:
    """Free what no snapshot needs; returns the bytes. Only while `exclusive`."""
    trees = {snapshot.tree for snapshot in store.all()}
    live = {entry.data for tree in trees for entry in store.tree(tree) if entry.kind == FILE}
    for tree in store.tree_names():
        if tree not in trees:
            store.drop_tree(tree)
    return discard(store.objects, live)


def _remove(store: Store, snapshots: list[Snapshot], *, then_collect: bool = True) -> list[Snapshot]:
    pending = read_pending(store)
    pinned = {pending.target, pending.safety} if pending else set()
    going = [snapshot for snapshot in snapshots if snapshot.id not in pinned]
    for snapshot in going:
        store.remove(snapshot)
    if going and then_collect:
        collect(store)
    return going
