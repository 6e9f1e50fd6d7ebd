"""`moat volumes list|rm|prune`: the directories that `volumes:` in agent.yaml keeps between runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from moat.cli import several
from moat.cli.output import emit, emit_json, say, table
from moat.cli.parser import Parser
from moat.errors import MoatError, UsageError
from moat.paths import Home
from moat.runtime.volumes import Volume, all_volumes, remove, size_of


def main(argv: Sequence[str]) -> int:
    parser = Parser(prog="moat volumes", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|rm|prune")
    listing = actions.add_parser("list", help="all volumes with their sizes")
    listing.add_argument("--json", action="store_true", help="as JSON")
    removing = actions.add_parser("rm", help="remove volumes with all that is in them")
    removing.add_argument(
        "names", nargs="+", metavar="NAME[/VOLUME]", help="as `moat volumes list` shows them"
    )
    pruning = actions.add_parser("prune", help="remove every volume that no run uses")
    pruning.add_argument("-n", "--dry-run", action="store_true", help="only tell what would be removed")
    for action in (removing, pruning):
        action.add_argument("-y", "--yes", action="store_true", help="do not ask")
    options = parser.parse_args(argv)
    volumes = all_volumes(Home.from_environment())
    if options.action == "list":
        return _list(volumes, json=options.json)
    if options.action == "rm":
        return _remove([v for name in options.names for v in _named(volumes, name)], yes=options.yes)
    unused = [volume for volume in volumes if not volume.in_use]
    if options.dry_run:
        return _list(unused, json=False)
    return _remove(unused, yes=options.yes)


def _list(volumes: Sequence[Volume], *, json: bool) -> int:
    found = [
        {"name": v.owner, "volume": v.name, "path": str(v.path), "bytes": size_of(v.path), "in_use": v.in_use}
        for v in volumes
    ]
    if json:
        emit_json(found)
        return 0
    rows = [
        (f"{v['name']}/{v['volume']}", in_megabytes(int(str(v["bytes"]))), "yes" if v["in_use"] else "no")
        for v in found
    ]
    emit(table(("VOLUME", "SIZE", "IN USE"), rows))
    return 0


def in_megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _named(volumes: Sequence[Volume], name: str) -> list[Volume]:
    found = [volume for volume in volumes if name in {volume.title, volume.owner}]
    if not found:
        raise MoatError(f"no volume {name!r}", hint="`moat volumes list` shows them")
    return found


def _remove(volumes: Sequence[Volume], *, yes: bool) -> int:
    if not volumes:
        say("nothing to remove")
        return 0
    if not yes and not _agreed(volumes):
        return 0
    for volume in volumes:
        remove(volume)
        emit(volume.title)
    return 0


def _agreed(volumes: Sequence[Volume]) -> bool:
    names = ", ".join(volume.title for volume in volumes)
    if not sys.stdin.isatty():
        raise UsageError(f"{names}: all that is in there would be lost", hint="add --yes")
    return several.ask(f"Remove {names} with all that is in there?")
