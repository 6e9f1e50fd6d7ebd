"""Bringing a tree back, in place or somewhere else.

In place nothing is lost, whenever it is cut off: a safety snapshot is taken first, the restore is noted
in the store until it is complete, each file is replaced by rename. A restore that was cut off is simply
done again from whatever there is by then. Only what the safety snapshot holds is removed or replaced.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from moat.dataclass import dataclass
from moat.runtime.git.fence import HERE, READ_ONLY
from moat.runtime.snapshots.applying import TEMPORARY, Told, Work
from moat.runtime.snapshots.diff import Change, below, exactly, merge
from moat.runtime.snapshots.entry import DIRECTORY, FILE, Entry
from moat.runtime.snapshots.errors import SnapshotError
from moat.runtime.snapshots.flush import flush
from moat.runtime.snapshots.pending import Pending, write_pending
from moat.runtime.snapshots.places import Places
from moat.runtime.snapshots.store import Kind, Missing, Snapshot, Store
from moat.runtime.snapshots.take import Tell, Wish, take
from moat.runtime.snapshots.walk import open_root

_GUARDED = frozenset(READ_ONLY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    target: Snapshot
    safety: Snapshot | None  # None: nothing had to be changed, or it was another directory
    changed: int = 0  # paths that were written
    removed: int = 0
    left: tuple[Missing, ...] = ()  # what was not touched, and why


def _nothing(_done: int, _of: int) -> None:
    """Nobody wants to know."""


def restore(
    store: Store,
    target: Snapshot,
    paths: tuple[str, ...] = (),
    *,
    run: str = "",
    living: bool = True,
    tell: Tell = lambda _entries, _size: None,
    told: Told = _nothing,
) -> Restored:
    """Make the workspace, or `paths` in it, what `target` holds. The caller holds `store.exclusive()`.

    run: whose snapshot the safety snapshot is. living: a sandbox uses the workspace.
    Raises SnapshotError; the workspace may then be half restored, which `read_pending` tells, and
    `restore` again completes.
    """
    wish = Wish(
        kind=Kind.SAFETY,
        run=run,
        label=f"before restoring {target.id}",
        gitignored=target.gitignored,
        exclude=target.exclude,
    )
    safety = take(store, wish, tell=tell, living=living)
    assert safety is not None
    wanted = below(paths)
    left: list[Missing] = []
    changes = list(_bring_back(store.tree(safety.tree), store.tree(target.tree), left, wanted))
    if living:
        changes = list(_without_guarded(changes, left))
    if not changes:
        store.remove(safety)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(store.root / "restore")
        return Restored(target=target, safety=None, left=tuple(left))
    _check(store, changes)
    note = Pending(target=target.id, safety=safety.id, paths=paths, at=time.time())
    write_pending(store, note)
    root = open_root(store.workspace)
    try:
        with Places(root) as places:
            work = Work(store.objects, places, left, wanted, told)
            work.run(changes, lambda: (e for e in store.tree(target.tree) if e.kind == DIRECTORY))
        flush(root)  # before the note goes
    except OSError as error:
        raise _cut_off(error) from None
    finally:
        os.close(root)
    os.unlink(store.root / "restore")
    return Restored(
        target=target, safety=safety, changed=work.changed, removed=work.removed, left=tuple(work.left)
    )


def restore_to(
    store: Store, target: Snapshot, place: Path, paths: tuple[str, ...] = (), *, told: Told = _nothing
) -> Restored:
    """Write what `target` holds, or `paths` of it, into the new or empty directory `place`."""
    wanted = below(paths)
    ways = {"/".join(path.split("/")[:n]) for path in paths for n in range(1, path.count("/") + 1)}
    changes = [
        Change(entry.path, None, entry)
        for entry in store.tree(target.tree)
        if entry.kept and (wanted(entry.path) or (entry.path in ways and entry.kind == DIRECTORY))
    ]
    _check(store, changes)
    place.mkdir(parents=True, exist_ok=True)
    if any(place.iterdir()):
        raise SnapshotError(f"{place} is not empty", hint="name a directory that does not exist")
    root = open_root(os.path.realpath(place))
    try:
        with Places(root) as places:
            work = Work(store.objects, places, [], wanted, told)
            work.run(changes, lambda: iter(()))
    except OSError as error:
        raise SnapshotError(f"cannot write to {place}: {error.strerror}") from None
    finally:
        os.close(root)
    return Restored(target=target, safety=None, changed=work.changed, left=tuple(work.left))


def _bring_back(
    now: Iterable[Entry], then: Iterable[Entry], left: list[Missing], wanted: Callable[[str], bool]
) -> Iterator[Change]:
    """What has to change. Of what was not kept then, or cannot be kept now, nothing is touched."""
    unknown: dict[str, str] = {}  # path -> what to tell of what is below it, if that is all that is wanted
    for a, b in merge(now, then):
        entry = a or b
        assert entry is not None
        if b is not None and not b.kept:
            unknown[b.path] = ""
            if a is not None and a.kept and wanted(b.path):
                left.append(Missing(b.path, f"it was not kept then: {b.data}"))
        elif a is not None and not a.kept:
            unknown[a.path] = f"what is at {a.path} cannot be kept: {a.data}"
            if b is not None and wanted(b.path):
                left.append(Missing(b.path, f"what is there cannot be kept: {a.data}"))
        elif a is None or b is None or not exactly(a, b):
            above = next((path for path in _ancestors(entry.path) if path in unknown), None)
            if above is not None:
                if unknown[above] and wanted(entry.path) and not wanted(above):
                    left.append(Missing(entry.path, unknown[above]))
            elif wanted(entry.path) or entry.path.rpartition("/")[2].startswith(TEMPORARY):
                yield Change(entry.path, a, b)


def _without_guarded(changes: Iterable[Change], left: list[Missing]) -> Iterator[Change]:
    """What a read-only mount may keep from a living sandbox is not replaced: the mount would end with it."""
    for change in changes:
        where, _, name = change.path.rpartition("/")
        inside = name in _GUARDED and (where == ".git" or where.endswith("/.git"))
        pointer = name == ".git" and change.before is not None and change.before.kind == FILE
        if change.before is None or not (inside or pointer):
            yield change
        elif change.before.size != len(HERE) or name != "commondir":  # ours, for as long as the run lasts
            left.append(Missing(change.path, "it is kept from a run that goes on; stop the run first"))


def _ancestors(path: str) -> Iterator[str]:
    names = path.split("/")
    return ("/".join(names[:count]) for count in range(1, len(names)))


def _check(store: Store, changes: list[Change]) -> None:
    """Nothing is touched when something that is needed is missing."""
    for change in changes:
        after = change.after
        if after is not None and after.kind == FILE and after.data not in store.objects:
            raise SnapshotError(f"the content of {after.path} is missing from the store")


def _cut_off(error: OSError) -> SnapshotError:
    return SnapshotError(
        f"the restore was cut off: {error.strerror}",
        hint="what is there is in the safety snapshot; `moat snapshot restore --continue` completes it",
    )
