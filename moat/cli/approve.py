"""`moat approve [run] [host]`, and with `allow=False` `moat deny [run] [host]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from moat.cli.answering import Open, honest, questions_of, runs_that_ask, send
from moat.cli.askbar import ascii_only
from moat.cli.output import emit, emit_json, say
from moat.cli.parser import Parser
from moat.config.ask import seconds_of
from moat.errors import MoatError, RunNotFoundError, UsageError
from moat.paths import Home
from moat.runtime.questions import Answer, Scope, exactly
from moat.runtime.records import RunRecord

_MOST = 24 * 3600  # seconds


def main(argv: Sequence[str]) -> int:
    return answer(argv, allow=True)


def answer(argv: Sequence[str], *, allow: bool) -> int:
    options = _parser(allow=allow).parse_args(argv)
    home = Home.from_environment()
    scope, seconds = _scope(options)
    record, host = _choose(home, *_run_and_host(options), allow=allow)
    pattern = exactly(host)
    if scope == "always":
        from moat.config.remember import remember  # ruamel.yaml is needed for this alone

        remember(home, str(pattern), allow=allow)
        say(f"{pattern} is in {home.config_file} now; every run with `policy: ask` goes by it")
    said = Answer(pattern=pattern, allow=allow, scope=scope, seconds=seconds, by="moat command")
    requests = send(record, said)
    if options.json:
        emit_json({"run": record.id, "name": record.name, **said.to_json(), "requests": requests})
        return 0
    how = {"once": "once", "for": f"for {options.time}", "run": "for this run", "always": "always"}[scope]
    verb = "may" if allow else "may not"
    emit(f"{record.name} {verb} reach {honest(str(pattern))}: {how}; {requests} waited")
    return 0


def _parser(*, allow: bool) -> argparse.ArgumentParser:
    word = "approve" if allow else "deny"
    parser = Parser(
        prog=f"moat {word}",
        description=f"{'Let a run reach' if allow else 'Refuse a run'} a host that it asks about "
        "(`network.policy: ask`): exactly this host and port. Without a host, asks which one is meant.",
    )
    parser.add_argument("run", nargs="?", help="name or id (default: the only one that asks)")
    parser.add_argument("host", nargs="?", help="NAME, NAME:PORT or *.NAME (default port: 443)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--once", action="store_true", help="the requests that wait now")
    how.add_argument("--for", dest="time", metavar="TIME", help="for a while: 90s, 10m, 2h")
    how.add_argument("--run", dest="whole", action="store_true", help="until the run ends (default)")
    how.add_argument("--always", action="store_true", help="in every run: writes ~/.moat/config.yaml")
    parser.add_argument("--json", action="store_true", help="what was done, as JSON")
    return parser


def _scope(options: argparse.Namespace) -> tuple[Scope, int]:
    if options.time is not None:
        seconds = seconds_of(options.time)
        if seconds is None or seconds > _MOST:
            raise UsageError(f"--for {options.time}: a time is e.g. 90s, 10m or 2h, at most 24h")
        return "for", seconds
    return ("once" if options.once else "always" if options.always else "run"), 0


def _run_and_host(options: argparse.Namespace) -> tuple[str | None, str | None]:
    """One word alone is a host when it has a dot or a colon, which no name of a run has."""
    if options.host is None and options.run and set(options.run) & set(".:*"):
        return None, options.run
    return options.run, options.host


def _choose(home: Home, run: str | None, host: str | None, *, allow: bool) -> tuple[RunRecord, str]:
    """Which run and which host are meant; what is not said is asked. Raises MoatError."""
    records = runs_that_ask(home, run)
    if run is not None and host is not None:
        return records[0], host
    found = [question for record in records for question in questions_of(record)]
    if host is not None:
        pattern = exactly(host)
        runs = {q.run.id: q.run for q in found if pattern.matches(q.question["host"], q.question["port"])}
        if len(runs) == 1:
            return next(iter(runs.values())), host
        raise RunNotFoundError(
            f"{'several runs ask' if runs else 'no run asks'} about {host}",
            hint=f"moat {'approve' if allow else 'deny'} <run> {host}",
        )
    if not found:
        raise MoatError("nothing waits for an answer", hint="moat approve <run> <host> allows one beforehand")
    chosen = _pick(found, allow=allow)
    return chosen.run, chosen.host if chosen.question["port"] != 443 else f"{chosen.host}:443"


def _pick(found: list[Open], *, allow: bool) -> Open:
    from moat.cli.menu import Console

    console = Console(json=True)
    word = "approve" if allow else "deny"
    if not console.terminal or not sys.stdout.isatty():
        raise UsageError(
            "which host is meant? " + ", ".join(f"{q.run.name} {q.host}" for q in found),
            hint=f"moat {word} {found[0].run.name} {found[0].host}",
        )
    for number, each in enumerate(found, 1):
        asked = each.question
        what = ascii_only(f"{asked['method']} {asked['path']}")
        state = "" if each.waiting else "  (refused meanwhile)"
        console.print(f"  {number}. {each.run.name}  {honest(each.host)}  {what}{state}")
    answers = [str(number) for number in range(1, len(found) + 1)]
    if len(found) == 1:  # "[1]" looks like what Enter means, so it is
        return found[int(console.choose(f"Which one to {word} [1]: ", [*answers, ""]) or 1) - 1]
    return found[int(console.choose(f"Which one to {word} [1-{len(found)}]: ", answers)) - 1]
