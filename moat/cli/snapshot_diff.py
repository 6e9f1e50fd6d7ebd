"""`moat snapshot diff [run] [A [B]] [-- path…]`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from moat.cli.changes import Sides, change_json, print_changes, telling, visible
from moat.cli.output import Progress, emit_json, say
from moat.cli.parser import Parser
from moat.cli.snapshot_place import Place, find_place, inside, split
from moat.errors import UsageError
from moat.paths import Home
from moat.runtime.snapshots.diff import Change, below, compare, for_people
from moat.runtime.snapshots.entry import Entry
from moat.runtime.snapshots.patch import Kept, Now
from moat.runtime.snapshots.store import Kind, Snapshot
from moat.runtime.snapshots.take import Wish, scan


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="moat snapshot diff",
        usage="moat snapshot diff [run] [A [B]] [options] [-- path...]",
        description="What differs between snapshot A (default: the newest) and B (default: the files now).",
    )
    parser.add_argument("words", nargs="*", metavar="run, A, B", help="a run, up to two snapshots")
    parser.add_argument("--stat", action="store_true", help="with the numbers of lines")
    parser.add_argument("-p", "--patch", action="store_true", help="as a patch that `git apply` takes")
    parser.add_argument("--all", action="store_true", help="with git's own files")
    parser.add_argument("--json", action="store_true", help="print JSON")
    flags, paths = _before(list(argv))
    options = parser.parse_intermixed_args(flags)
    home = Home.from_environment()
    run, names, more = split(home, options.words)
    if more:
        raise UsageError(f"no run {more[0]!r}", hint="paths come after `--`: moat snapshot diff -- src")
    if len(names) > 2:
        raise UsageError("two snapshots can be compared, not more")
    place, a, b = _sides(home, run, names)
    wanted = below(inside(place.store, paths))
    progress = Progress()
    with place.store.reading():
        try:
            found = differences(place, a, b, progress)
            changes, hidden = visible(
                (change for change in for_people(found) if wanted(change.path)), everything=options.all
            )
        finally:
            progress.clear()
        sides = Sides(Kept(place.store), Kept(place.store) if b else Now(place.store))
        if options.json:
            emit_json({"from": a.id, "to": b.id if b else None, "changes": list(map(change_json, changes))})
            return 0
        print_changes(changes, sides, stat=options.stat, patches=options.patch)
    if hidden:
        say(f"and {hidden} of git's own files (--all shows them)")
    return 0


def _before(argv: list[str]) -> tuple[list[str], list[str]]:
    at = argv.index("--") if "--" in argv else len(argv)
    return argv[:at], argv[at + 1 :]


def _sides(home: Home, run: str | None, names: list[str]) -> tuple[Place, Snapshot, Snapshot | None]:
    if names:
        place, a = Place.of_snapshot(home, names[0])
        return place, a, place.store.find(names[1]) if len(names) > 1 else None
    place = find_place(home, run)
    return place, newest(place, of_run=run is not None), None


def newest(place: Place, *, of_run: bool) -> Snapshot:
    """The newest one that is not a safety snapshot. Raises UsageError."""
    found = place.store.of_run(place.run.id) if of_run and place.run else place.store.all()
    found = [snapshot for snapshot in found if snapshot.kind is not Kind.SAFETY]
    if not found:
        raise UsageError(f"no snapshots of {place.store.workspace}", hint="moat snapshot takes one")
    return found[-1]


def differences(place: Place, a: Snapshot, b: Snapshot | None, progress: Progress) -> Iterable[Change]:
    store = place.store
    after: Iterable[Entry]
    if b is None:
        wish = Wish(kind=Kind.MANUAL, gitignored=a.gitignored, exclude=a.exclude)
        after = scan(store, wish, tell=telling(progress, "comparing"))
    else:
        after = store.tree(b.tree)
    return compare(store.tree(a.tree), after)
