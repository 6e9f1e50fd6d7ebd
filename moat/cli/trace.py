"""`moat trace [run]`: the phases of a run; with `--network` the requests that it made."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moat.cli.following import alive_while, follow
from moat.cli.output import clock, emit, emit_json, safe, say, table
from moat.cli.parser import Parser
from moat.errors import UsageError
from moat.journal import keeping, parse_line
from moat.journal.entry import entries
from moat.paths import Home
from moat.runtime import known
from moat.runtime.phases import Phase, phases


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="moat trace",
        description="Show what a run spent its time with, or with --network what it asked for and got.",
    )
    parser.add_argument("run", nargs="?", help="name or id (default: the newest)")
    parser.add_argument("--network", action="store_true", help="requests, one a line")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the run has ended")
    parser.add_argument("-v", "--verbose", action="store_true", help="with headers and sizes")
    parser.add_argument("--json", action="store_true", help="one JSON object per line, as recorded")
    options = parser.parse_args(argv)
    home = Home.from_environment()
    record = known.find(home, options.run)
    if not options.network:
        if options.follow or options.verbose:
            raise UsageError("-f and -v are for requests", hint="moat trace --network")
        _tell_phases(phases(home, record.id), json=options.json)
        return 0
    empty = True
    for fetch in _fetches(home, record.id):
        empty = False
        emit(json.dumps(fetch) if options.json else describe_fetch(fetch))
    alive = alive_while(home, record, follow=options.follow)
    path = home.run(record.id) / "network.jsonl"
    for exchange in _exchanges(follow(path, 0, alive)) if path.exists() else ():
        empty = False
        if options.json:
            emit(json.dumps(exchange))
        elif missing := _missing(exchange):
            say(f"warning: {missing}")
        else:
            emit("\n".join(describe(exchange, verbose=options.verbose)))
        if options.follow:
            sys.stdout.flush()
    if empty and not options.json:
        say(f"{record.name} has asked for nothing")
    return 0


def _tell_phases(found: Sequence[Phase], *, json: bool) -> None:
    if json:
        emit_json([dataclasses.asdict(phase) for phase in found])
        return
    rows = [
        (p.name, clock(p.began), "goes on" if p.seconds is None else f"{p.seconds:,.2f} s") for p in found
    ]
    emit(table(("PHASE", "BEGAN", "TOOK"), rows))


def _missing(line: Mapping[str, Any]) -> str:
    """What a line says that is no exchange; empty for one that is."""
    if "full" in line:
        return f"the trace has reached its limit of {line['full']:,} bytes; what came later is not in it"
    if "dropped" in line:
        return f"{line['dropped']:,} exchanges are not in this trace"
    return ""


def _fetches(home: Home, run_id: str) -> Iterator[dict[str, Any]]:
    """What this machine fetched for the run, which is in its journal: no exchange of its proxy."""
    for entry in entries(home.run(run_id) / keeping.FILE):
        if entry.event == "plugin.fetched":
            yield {"ts": entry.at, "event": entry.event, **entry.data}


def describe_fetch(fetch: Mapping[str, Any]) -> str:
    """`[15:04:05] FETCH host marketplace tools at 0123456789ab (by this machine, named by config)`."""
    came = f"at {fetch['commit'][:12]}" if fetch.get("commit") else f"failed: {fetch.get('error')}"
    what = f"{fetch.get('host')} {fetch.get('what')} {came}"
    return safe(f"[{clock(str(fetch['ts']))}] FETCH {what} (by this machine, named by {fetch.get('by')})")


def describe(exchange: Mapping[str, Any], *, verbose: bool = False) -> Iterator[str]:
    """`[15:04:05] GET https://host/path 200 (12 ms)` and, when verbose, everything else."""
    get = exchange.get
    status = get("status") or "ERR"
    yield safe(
        f"[{clock(str(get('ts', '')))}] {get('method')} {get('url')} {status} ({_ms(get('duration_ms'))})"
    )
    denial, warning, error = get("denial"), get("warning"), get("error")
    if isinstance(denial, dict):
        yield safe(f"    denied: {denial.get('reason')} ({denial.get('rule')})")
    if isinstance(warning, dict):
        yield safe(f"    warned: {warning.get('reason')} ({warning.get('rule')})")
    if error:
        yield safe(f"    error: {error}")
    if not verbose:
        return
    if get("id"):
        yield f"    exchange {get('id')}"
    if get("grants"):
        yield safe(f"    credentials: {', '.join(get('grants', ()))}")
    for arrow, name in ((">", "request_headers"), ("<", "response_headers")):
        for field, value in get(name) or ():
            yield safe(f"    {arrow} {field}: {value}")
    yield f"    {get('request_bytes')} bytes up, {get('response_bytes')} bytes down"


def _exchanges(pieces: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            record = parse_line(line)
            if record is not None:
                yield record


def _ms(value: object) -> str:
    return f"{value:.0f} ms" if isinstance(value, int | float) else "? ms"
