"""`moat review [run]`: what a run changed, file by file, and the way back for single ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from moat.cli.changes import Sides, change_json, print_changes, visible
from moat.cli.output import Progress, dumb, emit_json, say
from moat.cli.parser import Parser
from moat.cli.snapshot_diff import differences
from moat.cli.snapshot_place import Place, find_place, inside
from moat.cli.snapshot_restore import bring_back, refuse_other, report
from moat.errors import UsageError
from moat.paths import Home
from moat.runtime.records import RunRecord
from moat.runtime.snapshots.diff import Change, count, for_people
from moat.runtime.snapshots.patch import Kept, Now
from moat.runtime.snapshots.pending import read_pending
from moat.runtime.snapshots.store import Kind, Snapshot, open_store


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="moat review",
        description="Show what changed in the workspace since a run began, and take back single files. "
        "On a terminal: arrow keys choose, Enter shows the patch, r takes a file back, q leaves.",
    )
    parser.add_argument("run", nargs="?", help="name or id (default: the newest of this directory)")
    parser.add_argument("--stat", action="store_true", help="with the numbers of lines")
    parser.add_argument("-p", "--patch", action="store_true", help="as a patch that `git apply` takes")
    parser.add_argument("--all", action="store_true", help="with git's own files")
    parser.add_argument(
        "--revert", action="append", default=[], metavar="PATH", help="take back (repeatable)"
    )
    parser.add_argument("--plain", action="store_true", help="print the list, on a terminal as well")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    place = find_place(Home.from_environment(), options.run)
    base = _base(place)
    if options.revert:
        paths = inside(place.store, options.revert)
        refuse_other(read_pending(place.store), paths)
        _check(place, base, paths)
        return report(place, bring_back(place, base, paths), json=options.json)
    changes, hidden = _changes(place, base, everything=options.all)
    sides = Sides(Kept(place.store), Now(place.store))
    if options.json:
        emit_json({"run": base.run, "since": base.id, "changes": list(map(change_json, changes))})
        return 0
    plain = dumb() or options.plain or options.patch or options.stat
    if changes and not plain and sys.stdin.isatty() and sys.stdout.isatty():
        from moat.cli.review_screen import ReviewScreen

        return ReviewScreen(place, base, changes, sides).run()
    with place.store.reading():
        print_changes(changes, sides, stat=options.stat, patches=options.patch)
    if hidden:
        say(f"and {hidden} of git's own files (--all shows them)")
    return 0


def _base(place: Place) -> Snapshot:
    """The pre-run snapshot of the run, or its first one. Raises UsageError."""
    if place.run is None:
        raise UsageError(f"no run of {place.store.workspace}", hint="moat review <run>")
    mine = place.store.of_run(place.run.id)
    first = next((s for s in mine if s.kind is Kind.PRE_RUN), mine[0] if mine else None)
    if first is None:
        raise UsageError(
            f"no snapshot of {place.run.name}: what was there before is not known",
            hint="runs with --no-snapshots or snapshots.disabled keep none",
        )
    return first


def _changes(place: Place, base: Snapshot, *, everything: bool) -> tuple[list[Change], int]:
    progress = Progress()
    try:
        return visible(for_people(differences(place, base, None, progress)), everything=everything)
    finally:
        progress.clear()


def _check(place: Place, base: Snapshot, paths: tuple[str, ...]) -> None:
    """A path that nothing happened to is a typing mistake."""
    changes, _ = _changes(place, base, everything=True)
    for path in paths:
        if path and not any(c.path == path or c.path.startswith(path + "/") for c in changes):
            raise UsageError(f"{path} is as it was", hint=f"moat review {base.run} lists what changed")


def summary(home: Home, record: RunRecord) -> str:
    """`3 files changed, 1 added` since the run began; empty when nothing is, or nothing is known."""
    place = Place(home, open_store(home, record.workspace), record)
    mine = [s for s in place.store.of_run(record.id) if s.kind is Kind.PRE_RUN]
    if not mine:
        return ""
    progress = Progress()
    try:
        numbers = count(for_people(differences(place, mine[0], None, progress)))
    finally:
        progress.clear()
    return str(numbers) if numbers else ""
