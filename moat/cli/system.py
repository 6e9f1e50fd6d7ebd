"""`moat system images|prune`: what Moat keeps on this machine, and giving the space back."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from moat.cli import several
from moat.cli.output import emit, emit_json, say, table
from moat.cli.parser import Parser
from moat.cli.volumes import in_megabytes
from moat.errors import UsageError
from moat.paths import Home
from moat.runtime import storage
from moat.runtime.known import all_runs
from moat.runtime.records import describe_age


def main(argv: Sequence[str]) -> int:
    parser = Parser(prog="moat system", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="images|prune")
    listing = actions.add_parser("images", help="the images that Moat has built")
    listing.add_argument("--json", action="store_true", help="as JSON")
    pruning = actions.add_parser("prune", help="remove the images that nothing uses")
    pruning.add_argument("-n", "--dry-run", action="store_true", help="only tell what would be removed")
    pruning.add_argument("--downloads", action="store_true", help="fetched packages and plugins too")
    pruning.add_argument("-y", "--yes", action="store_true", help="do not ask")
    pruning.add_argument("--json", action="store_true", help="what was removed, as JSON")
    options = parser.parse_args(argv)
    if options.action == "images":
        return _list(storage.images(), json=options.json)
    return _prune(options)


def _list(images: Sequence[storage.StoredImage], *, json: bool) -> int:
    if json:
        emit_json([dataclasses.asdict(image) for image in images])
        return 0
    rows = [
        (
            image.tag or image.id.removeprefix("sha256:")[:12],
            in_megabytes(image.size),
            describe_age(image.created),
            "yes" if image.in_use else "no",
            image.contents,
        )
        for image in images
    ]
    emit(table(("IMAGE", "SIZE", "AGE", "IN USE", "CONTENTS"), rows))
    return 0


def _prune(options: argparse.Namespace) -> int:
    home = Home.from_environment()
    unused = [image for image in storage.images() if not image.in_use]
    fetched = storage.downloads(home) if options.downloads else None
    size = sum(image.size for image in unused) + (fetched.size if fetched else 0)
    what = [f"{len(unused)} images", *(["fetched packages and plugins"] if fetched else [])]
    if options.dry_run:
        if options.json:
            emit_json({"images": [i.tag or i.id for i in unused], "bytes": size, "removed": False})
            return 0
        _list(unused, json=False)
        say(f"would remove {' and '.join(what)}, at most {in_megabytes(size)}")
        return 0
    if not size:
        say("nothing to remove")
        return 0
    if not options.yes and not _agreed(f"{' and '.join(what)}, at most {in_megabytes(size)}"):
        return 0
    storage.check_unused(all_runs(home), and_downloads=fetched is not None)
    removed = [image for image in unused if storage.remove_image(image)]
    if fetched:
        storage.remove_downloads(fetched)
    return _told(options, removed, fetched)


def _told(
    options: argparse.Namespace, removed: Sequence[storage.StoredImage], fetched: storage.Downloads | None
) -> int:
    size = sum(image.size for image in removed) + (fetched.size if fetched else 0)
    if options.json:
        emit_json({"images": [i.tag or i.id for i in removed], "bytes": size, "removed": True})
        return 0
    for image in removed:
        emit(image.tag or image.id)
    say(f"removed, at most {in_megabytes(size)} (layers that other images have as well stay)")
    return 0


def _agreed(what: str) -> bool:
    if not sys.stdin.isatty():
        raise UsageError(
            f"{what} would be removed", hint="moat system prune --yes, or --dry-run to look first"
        )
    return several.ask(f"Remove {what}?")
