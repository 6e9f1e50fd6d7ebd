"""`moat snapshot restore [run] [SNAPSHOT] [path…]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from moat.cli import several
from moat.cli.changes import safe, telling, told
from moat.cli.output import Progress, emit, emit_json, say
from moat.cli.parser import Parser
from moat.cli.snapshot_diff import differences, newest
from moat.cli.snapshot_place import Place, find_place, inside, split
from moat.errors import UsageError
from moat.paths import Home
from moat.runtime.records import describe_age
from moat.runtime.snapshots import hold
from moat.runtime.snapshots.diff import below, count, for_people
from moat.runtime.snapshots.errors import SnapshotError
from moat.runtime.snapshots.pending import Pending, read_pending
from moat.runtime.snapshots.restore import Restored, restore, restore_to
from moat.runtime.snapshots.store import Snapshot

_SOME_LEFT = 1  # exit status: restored, but for what was told
_SHOWN = 20


def main(argv: Sequence[str]) -> int:
    options, after = _parse(list(argv))
    home = Home.from_environment()
    run, names, paths = split(home, [*options.words, *after])
    if len(names) > 1:
        raise UsageError("one snapshot can be restored, not more")
    if options.proceed:
        if names or paths or options.to:
            raise UsageError(
                "--continue takes what the restore began with; it wants no snapshot, path or --to"
            )
        return _proceed(find_place(home, run), json=options.json)
    if names:
        place, target = Place.of_snapshot(home, names[0])
    else:
        place = find_place(home, run)
        target = newest(place, of_run=place.run is not None)
    wanted = inside(place.store, paths)
    _check_paths(place, target, wanted)
    if options.to:
        return _elsewhere(place, target, wanted, options)
    refuse_other(read_pending(place.store), wanted)
    if not options.yes and not _agreed(place, target, wanted):
        return 0
    return report(place, bring_back(place, target, wanted), json=options.json)


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser(
        prog="moat snapshot restore",
        usage="moat snapshot restore [run] [SNAPSHOT] [path...] [options]",
        description="Bring a workspace, or paths in it, back to a snapshot (default: the newest). Runs that "
        "use it are paused meanwhile; what is there now is kept in a safety snapshot first.",
    )
    parser.add_argument("words", nargs="*", metavar="run, SNAPSHOT, path", help="what to restore")
    parser.add_argument("--to", metavar="DIR", help="write it to a new directory instead")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    parser.add_argument(
        "--continue", dest="proceed", action="store_true", help="complete one that was cut off"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    at = argv.index("--") if "--" in argv else len(argv)
    return parser.parse_intermixed_args(argv[:at]), ["--", *argv[at + 1 :]] if at < len(argv) else []


def refuse_other(pending: Pending | None, paths: tuple[str, ...]) -> None:
    """A restore of everything replaces one that was cut off; one of single paths would leave it half."""
    if pending is not None and paths:
        raise SnapshotError(
            "an earlier restore was cut off and is not complete",
            hint="`moat snapshot restore --continue` completes it, and "
            f"`moat snapshot restore {pending.safety}` goes back to what was before it",
        )


def _proceed(place: Place, *, json: bool) -> int:
    pending = read_pending(place.store)
    if pending is None:
        say(f"no restore of {place.store.workspace} was cut off")
        return 0
    return report(place, bring_back(place, place.store.find(pending.target), pending.paths), json=json)


def _check_paths(place: Place, target: Snapshot, paths: tuple[str, ...]) -> None:
    missing = [path for path in paths if path]
    for entry in place.store.tree(target.tree):
        missing = [path for path in missing if not below((path,))(entry.path)]
        if not missing:
            return
    gone = [
        path
        for path in missing
        if not (Path(place.store.workspace) / path).is_symlink()
        and not (Path(place.store.workspace) / path).exists()
    ]
    if gone:
        raise UsageError(
            f"no {safe(gone[0])} in {target.id} or in the workspace",
            hint=f"moat snapshot show {target.id} --files",
        )


def _elsewhere(place: Place, target: Snapshot, paths: tuple[str, ...], options: argparse.Namespace) -> int:
    progress = Progress()
    try:
        with place.store.reading():
            done = restore_to(
                place.store, target, Path(options.to).absolute(), paths, told=told(progress, "writing")
            )
    finally:
        progress.clear()
    return report(place, done, json=options.json, to=options.to)


def _agreed(place: Place, target: Snapshot, paths: tuple[str, ...]) -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            "files of the workspace would be replaced", hint="add --yes, or write them to --to DIR"
        )
    wanted = below(paths)
    progress = Progress()
    try:
        found = differences(place, target, None, progress)
        numbers = count(change for change in for_people(found) if wanted(change.path))
    finally:
        progress.clear()
    emit(
        f"{place.store.workspace}: {numbers} since {target.id}"
        f" ({target.kind}, {describe_age(target.at)} ago)."
    )
    for record in hold.users(place.home, place.store.workspace):
        emit(f"{record.name} is running there and will be paused meanwhile.")
    return several.ask("Restore? What is there now is kept in a safety snapshot.")


def bring_back(
    place: Place, target: Snapshot, paths: tuple[str, ...], *, progress: Progress | None = None
) -> Restored:
    """Restore in place, with every run of the workspace held still. Raises SnapshotError."""
    store = place.store
    progress = progress or Progress()
    run = place.run.id if place.run else target.run
    try:
        with store.exclusive(lambda: progress.show("waiting for another snapshot of this workspace")):
            users = hold.users(place.home, store.workspace)
            with hold.held(users):
                done = restore(
                    store,
                    target,
                    paths,
                    run=run,
                    living=bool(users),
                    tell=telling(progress, "keeping what is there"),
                    told=told(progress, "restoring"),
                )
    finally:
        progress.clear()
    data = {
        "id": target.id,
        "safety": done.safety.id if done.safety else None,
        "paths": [safe(path) for path in paths],
        "written": done.changed,
        "removed": done.removed,
        "left": len(done.left),
    }
    hold.note(place.home, store, users, "snapshot.restored", data)
    return done


def report(place: Place, done: Restored, *, json: bool, to: str = "") -> int:
    status = _SOME_LEFT if done.left else 0
    if json:
        emit_json(
            {
                "snapshot": done.target.id,
                "safety": done.safety.id if done.safety else None,
                "to": to or place.store.workspace,
                "written": done.changed,
                "removed": done.removed,
                "left": [{"path": safe(item.path), "why": item.why} for item in done.left],
            }
        )
        return status
    if done.safety is None and not to and not done.left:
        say(f"nothing to do: the workspace is as it was in {done.target.id}")
        return 0
    emit(f"restored {done.target.id}: {done.changed:,} written, {done.removed:,} removed")
    for item in done.left[:_SHOWN]:
        say(f"left alone: {safe(item.path)} ({item.why})")
    if len(done.left) > _SHOWN:
        say(f"left alone: {len(done.left) - _SHOWN:,} more")
    if done.safety is not None:
        say(f"what was there before is kept: `moat snapshot restore {done.safety.id}` brings it back")
    return status
