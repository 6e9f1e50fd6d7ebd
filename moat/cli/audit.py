"""`moat audit`: what happened in a run, and whether anybody has changed the record of it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moat.cli.following import follow
from moat.cli.output import clock, emit, emit_json, emit_kept, safe, say
from moat.cli.parser import Parser
from moat.errors import MoatError, RunNotFoundError, UsageError
from moat.journal import bundle, keeping, ledger, parse_line, verify
from moat.journal.key import installation_key, is_public_key, public_key
from moat.paths import Home
from moat.runtime import known, records
from moat.runtime.records import RunRecord

_DESCRIPTION = "Show the journal of a run: what it was allowed, what it used, what it was refused."
_EPILOG = """\
  moat audit verify FILE [--key KEY]   check what --export wrote, on any machine
  moat audit key                       print this installation's public key

exit status of a verification: 0 proven, 1 somebody changed it, 2 usage, 3 it cannot be told"""


def main(argv: Sequence[str]) -> int:
    if argv[:1] == ["key"]:
        return _key(argv[1:])
    if argv[:1] == ["verify"]:
        return _verify_file(argv[1:])
    parser = Parser(
        prog="moat audit",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="?", help="name or id (default: the newest)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the run has ended")
    parser.add_argument("--json", action="store_true", help="entries as they are kept; verdicts as JSON")
    parser.add_argument("--verify", action="store_true", help="check that nobody changed the journal")
    parser.add_argument("--all", action="store_true", help="with --verify: every journal, also missing ones")
    parser.add_argument(
        "--workspace",
        metavar="DIR",
        type=Path,
        help="what you did to a workspace while no run was alive there",
    )
    parser.add_argument("--export", metavar="FILE", help="write all that a verification needs; `-`: stdout")
    _add_key(parser)
    options = parser.parse_args(argv)
    home = Home.from_environment()
    _check(options)
    if options.workspace:
        return _workspace(home, options)
    if options.all:
        return _verify_all(home, options)
    record = known.find(home, options.run)
    if options.export:
        return _export(home, record, options.export)
    return _verify(home, record, options) if options.verify else _show(home, record, options)


def _add_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--key", action="append", default=[], help="a public key to trust, as `moat audit key` prints it"
    )


def _check(options: argparse.Namespace) -> None:
    if options.all and (options.run or not options.verify):
        raise UsageError("--all goes with --verify and no run", hint="moat audit --verify --all")
    if options.verify and options.follow:
        raise UsageError("--verify checks once; it does not follow")
    if options.export and (options.verify or options.follow or options.json or options.all):
        raise UsageError("--export goes with no other option", hint="moat audit <run> --export FILE")
    if options.workspace and (options.run or options.all or options.follow or options.export):
        raise UsageError("--workspace goes with --json and --verify only", hint="moat audit --workspace .")
    _check_keys(options)


def _check_keys(options: argparse.Namespace) -> None:
    for key in options.key:
        if not is_public_key(key):
            raise UsageError(f"{key!r} is not a public key", hint="`moat audit key` prints one")


def _key(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="moat audit key",
        description="Print the public key that this installation's journals are signed with.",
    )
    parser.parse_args(argv)
    emit(installation_key(Home.from_environment()).public)
    return 0


def _export(home: Home, record: RunRecord, target: str) -> int:
    data = bundle.export(home, record.id, alive=records.owned(home.run(record.id)))
    if target == "-":
        emit_kept(data.removesuffix(b"\n"))
        return 0
    try:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UsageError(f"{target} exists already", hint="an export never overwrites") from None
    with os.fdopen(fd, "wb") as file:
        file.write(data)
    return 0


def _verify_file(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="moat audit verify",
        description="Check a file that `moat audit --export` wrote. Nothing of Moat has to be set up here.",
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--json", action="store_true", help="the verdict as JSON")
    _add_key(parser)
    options = parser.parse_args(argv)
    _check_keys(options)
    ours = public_key(Home.from_environment())
    try:
        data = options.file.read_bytes()
    except OSError as error:
        raise UsageError(f"{options.file}: {error.strerror}") from None
    report = bundle.judge(data, options.key)
    if not options.key and report.key == ours:
        report = bundle.judge(data, [ours])
    return _tell(report, "", as_json=options.json)


# --- showing ---------------------------------------------------------------------------------------


def _show(home: Home, record: RunRecord, options: argparse.Namespace) -> int:
    path = home.run(record.id) / keeping.FILE
    if not path.exists():
        raise RunNotFoundError(f"{record.name} has no journal", hint="`moat audit --verify` tells more")
    for line in _lines(path, home, record, following=options.follow):
        if options.json:
            emit_kept(line)
        elif (found := parse_line(line)) is not None:
            emit(describe(found))
        if options.follow:
            sys.stdout.flush()
    return 0


def _lines(path: Path, home: Home, record: RunRecord, *, following: bool) -> Iterator[bytes]:
    rest = b""
    directory = home.run(record.id)
    # Until its owner has let go: the seal comes after the record says that the run has ended.
    for piece in follow(path, 0, lambda: following and records.owned(directory)):
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines


def describe(entry: Mapping[str, Any]) -> str:
    """`[15:04:05] grant.used         count=1  exchanges=3  grant=github  host=…`, one line."""
    data = entry.get("data")
    fields = data if isinstance(data, dict) else {}
    told = "  ".join(f"{name}={_shown(value)}" for name, value in fields.items() if _tells(value))
    return safe(f"[{clock(str(entry.get('at', '')))}] {entry.get('event', '')!s:<18} {told}".rstrip())


def _tells(value: object) -> bool:
    return value not in (None, "", [])


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value if value and not set(value) & set(" =\"'") else json.dumps(value, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _workspace(home: Home, options: argparse.Namespace) -> int:
    """What the ledger has of a workspace, or a judgement of the ledger."""
    workspace = str(options.workspace.expanduser().resolve())
    if options.verify:
        return _tell(verify.of_ledger(home, options.key), "", as_json=options.json)
    noted = ledger.notes(home, workspace)
    if not noted and not options.json:
        say(f"nothing is recorded of {workspace}")
    for found in noted:
        if options.json:
            emit_kept(found.line)
        else:
            emit(describe({"at": found.at, "event": found.event, "data": found.data}))
    return 0


# --- judging ---------------------------------------------------------------------------------------


def _verify(home: Home, record: RunRecord, options: argparse.Namespace) -> int:
    alive = records.owned(home.run(record.id))
    report = verify.run(home, record.id, alive=alive, trusted=options.key)
    if report.status == verify.OK and report.state == "unsealed":
        with contextlib.suppress(OSError, MoatError):  # it is a favour to the next verification
            keeping.close_abandoned(home, record.id)
    return _tell(report, record.name, as_json=options.json)


def _tell(report: verify.Report, name: str, *, as_json: bool) -> int:
    if as_json:
        emit_json(report.to_json())
    else:
        emit("\n".join(verdict(report, name)))
    return report.status


def _verify_all(home: Home, options: argparse.Namespace) -> int:
    """The worst verdict counts: tampering before doubt."""
    alive = [run.id for run in known.all_runs(home) if not run.state.ended]
    reports = verify.every(home, alive, options.key)
    if options.json:
        emit_json([report.to_json() for report in reports])
    else:
        for report in reports:
            emit("\n".join(verdict(report)))
    return worst(report.status for report in reports)


def worst(statuses: Iterable[int]) -> int:
    found = set(statuses)
    return next((status for status in (verify.TAMPERED, verify.UNSURE) if status in found), verify.OK)


def verdict(report: verify.Report, name: str = "") -> Iterator[str]:
    """What is proven and what is not, in sentences."""
    title = f"{name} ({report.run})" if name else report.run
    if report.status == verify.TAMPERED:
        yield f"{title}: TAMPERED"
        yield from (f"  {safe(text)}" for text in report.problems)
    elif report.status == verify.UNSURE:
        yield f"{title}: cannot tell"
    else:
        yield f"{title}: proven"
        yield from (f"  {text}" for text in _proven(report))
    yield from (f"  unclear: {safe(text)}" for text in report.doubts)
    yield from (f"  note: {safe(text)}" for text in report.notes)


def _proven(report: verify.Report) -> Iterator[str]:
    if report.state == "removed":
        yield "the run was removed with `moat destroy` or `moat clean`"
        return
    yield f"{report.entries} entries, none changed, inserted, removed or moved; signed with {report.key}"
    if report.state == "sealed":
        yield "nothing is missing at the end: the journal is sealed"
    elif report.state == "running":
        yield "not proven: anything about what comes after these entries"
    else:
        yield "not proven: that the last moment before the end was recorded"
    yield "not proven: that nobody who can read the private key wrote another one in its place"
