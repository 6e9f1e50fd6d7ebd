"""`moat snapshot [run]` and its actions: list, show, diff, restore, prune."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from moat import config
from moat.cli import snapshot_diff, snapshot_restore
from moat.cli.changes import path_json, safe, size_text, telling
from moat.cli.output import Progress, emit, emit_json, say, table
from moat.cli.parser import Parser
from moat.cli.snapshot_place import Place, find_place
from moat.errors import UsageError
from moat.paths import Home
from moat.runtime.records import describe_age
from moat.runtime.snapshots import hold, retention
from moat.runtime.snapshots.errors import SnapshotError
from moat.runtime.snapshots.part import described
from moat.runtime.snapshots.store import Kind, Snapshot
from moat.runtime.snapshots.take import Wish, take

_ACTIONS = "actions: list, show, diff, restore, prune (`moat snapshot list --help`)"


def main(argv: Sequence[str]) -> int:
    actions = {
        "list": _list,
        "show": _show,
        "diff": snapshot_diff.main,
        "restore": snapshot_restore.main,
        "prune": _prune,
    }
    if argv and argv[0] in actions:
        return actions[argv[0]](argv[1:])
    return _take(argv)


def _parser(action: str, description: str) -> argparse.ArgumentParser:
    parser = Parser(prog=f"moat snapshot {action}".strip(), description=description)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _take(argv: Sequence[str]) -> int:
    parser = _parser("", f"Keep a snapshot of a workspace now. Other {_ACTIONS}.")
    parser.add_argument(
        "run", nargs="?", help="run whose workspace it is (default: the one of this directory)"
    )
    parser.add_argument("--label", default="", metavar="TEXT", help="what you want to find it by")
    options = parser.parse_args(argv)
    home = Home.from_environment()
    place = find_place(home, options.run, new=True)
    progress = Progress()
    tell = telling(progress, "reading")
    try:
        with place.store.exclusive(lambda: progress.show("waiting for another snapshot of this workspace")):
            users = hold.users(home, place.store.workspace)
            snapshot = take(place.store, _wish(place, options.label), tell=tell, living=bool(users))
            assert snapshot is not None
            limits = _limits(place)
            gone = retention.thin(place.store, snapshot.run, limits) if snapshot.run else []
    finally:
        progress.clear()
    hold.note(home, place.store, users, "snapshot.taken", described(snapshot))
    if gone:
        ids = [other.id for other in gone]
        hold.note(home, place.store, users, "snapshot.removed", {"ids": ids, "why": "retention"})
    if options.json:
        emit_json(_json(snapshot))
        return 0
    emit(snapshot.id)
    say(f"{snapshot.files:,} files, {size_text(snapshot.size)}; {size_text(snapshot.added)} are new")
    _warn(snapshot)
    return 0


def _wish(place: Place, label: str) -> Wish:
    """As the run's own snapshots: the agent may have rewritten agent.yaml since."""
    run = place.run.id if place.run else ""
    mine = place.store.of_run(run)
    if mine:
        first = mine[0]
        return Wish(
            kind=Kind.MANUAL, run=run, label=label, gitignored=first.gitignored, exclude=first.exclude
        )
    return Wish.of(_limits(place), Kind.MANUAL, run, label)


def _limits(place: Place) -> config.SnapshotConfig:
    from pathlib import Path

    return config.load(Path(place.store.workspace)).snapshots


def _warn(snapshot: Snapshot) -> None:
    if snapshot.missing_count:
        first = snapshot.missing[0]
        say(f"not kept: {snapshot.missing_count} (e.g. {safe(first.path)}: {first.why})")
    if snapshot.unsettled:
        say(f"changed while it was read: {len(snapshot.unsettled)} (e.g. {safe(snapshot.unsettled[0])})")


def _json(snapshot: Snapshot) -> dict[str, object]:
    value = snapshot.to_json()
    value["missing"] = [{**path_json(item.path), "why": item.why} for item in snapshot.missing]
    value["unsettled"] = [path_json(path) for path in snapshot.unsettled]
    return value


def _list(argv: Sequence[str]) -> int:
    parser = _parser("list", "List the snapshots of a run, or of the workspace of this directory.")
    parser.add_argument("run", nargs="?", help="name or id (default: every run of this workspace)")
    options = parser.parse_args(argv)
    place = find_place(Home.from_environment(), options.run)
    found = place.store.of_run(place.run.id) if options.run and place.run else place.store.all()
    found.reverse()
    if options.json:
        emit_json([_json(snapshot) for snapshot in found])
        return 0
    if not found:
        say(f"no snapshots of {place.store.workspace}")
        return 0
    rows = [
        (
            snapshot.id,
            f"{describe_age(snapshot.at)} ago",
            snapshot.kind,
            place.name_of(snapshot.run),
            f"{snapshot.files:,}",
            size_text(snapshot.size),
            size_text(snapshot.added),
            safe(snapshot.label),
        )
        for snapshot in found
    ]
    emit(table(("SNAPSHOT", "AGE", "KIND", "RUN", "FILES", "SIZE", "NEW", "LABEL"), rows))
    return 0


def _show(argv: Sequence[str]) -> int:
    parser = _parser("show", "Show what a snapshot is, or print one file of it.")
    parser.add_argument("snapshot", help="id, or the beginning of one")
    parser.add_argument("path", nargs="?", help="print this file as it was")
    parser.add_argument("--files", action="store_true", help="list everything in it")
    options = parser.parse_args(argv)
    place, snapshot = Place.of_snapshot(Home.from_environment(), options.snapshot)
    with place.store.reading():
        if options.path is not None:
            return _print_file(place, snapshot, options.path)
        entries = list(place.store.tree(snapshot.tree)) if options.files else []
    if options.json:
        value = _json(snapshot)
        if options.files:
            value["entries"] = [
                {**path_json(e.path), "kind": e.kind, "mode": f"{e.mode:04o}", "size": e.size}
                for e in entries
            ]
        emit_json(value)
        return 0
    if options.files:
        for entry in entries:
            emit(f"{entry.kind} {entry.mode:04o} {entry.size:>12,} {safe(entry.path)}")
        return 0
    lines = {
        "snapshot": snapshot.id,
        "workspace": safe(snapshot.workspace),
        "kind": snapshot.kind,
        "run": place.name_of(snapshot.run),
        "age": describe_age(snapshot.at),
        "label": safe(snapshot.label) or "-",
        "files": f"{snapshot.files:,} ({size_text(snapshot.size)}, {size_text(snapshot.added)} new)",
        "left out": ", ".join(map(safe, snapshot.exclude)) or "-",
        ".gitignore": "what it names is kept" if snapshot.gitignored else "what it names is left out",
    }
    for name, text in lines.items():
        emit(f"{name + ':':<12}{text}")
    for item in snapshot.missing:
        emit(f"not kept:   {safe(item.path)} ({item.why})")
    if snapshot.missing_count > len(snapshot.missing):
        emit(f"            and {snapshot.missing_count - len(snapshot.missing):,} more")
    for path in snapshot.unsettled:
        emit(f"unsettled:  {safe(path)} (it changed while it was read)")
    return 0


def _print_file(place: Place, snapshot: Snapshot, path: str) -> int:
    wanted = path.rstrip("/")
    for entry in place.store.tree(snapshot.tree):
        if entry.path == wanted:
            if entry.kind != "f" or entry.segments is not None:
                raise UsageError(
                    f"{path} is no plain file in {snapshot.id}", hint="moat snapshot restore --to DIR"
                )
            sys.stdout.flush()
            for data in place.store.objects.pieces(entry.data):
                sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return 0
    raise UsageError(f"no {path} in {snapshot.id}", hint=f"moat snapshot show {snapshot.id} --files")


def _prune(argv: Sequence[str]) -> int:
    parser = _parser("prune", "Remove old snapshots, and free what only they needed.")
    parser.add_argument("run", nargs="?", help="name or id (default: every run of this workspace)")
    parser.add_argument(
        "--keep", type=int, default=5, metavar="N", help="newest of each run to keep (default: 5)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    options = parser.parse_args(argv)
    if options.keep < 0:
        raise UsageError("--keep must not be negative")
    home = Home.from_environment()
    place = find_place(home, options.run)
    store = place.store
    if not store.root.exists():
        raise SnapshotError(f"no snapshots of {store.workspace}")
    with store.exclusive():
        runs = [place.run.id] if options.run and place.run else sorted({s.run for s in store.all()})
        going = [s for run in runs for s in retention.surplus(store.of_run(run), options.keep)]
        freed = 0 if options.dry_run else retention.remove(store, going)
    if going and not options.dry_run:
        data = {"ids": [snapshot.id for snapshot in going], "why": "prune"}
        hold.note(home, store, hold.users(home, store.workspace), "snapshot.removed", data)
    if options.json:
        emit_json({"removed": [s.id for s in going], "freed": freed, "dry_run": options.dry_run})
        return 0
    for snapshot in going:
        emit(snapshot.id)
    what = "would be removed" if options.dry_run else f"removed, {size_text(freed)} freed"
    say(f"{len(going)} snapshots {what}")
    return 0
