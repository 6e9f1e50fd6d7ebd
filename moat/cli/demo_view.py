"""How `moat demo` looks: 80 columns, colour on a terminal only, plain text when piped."""

from __future__ import annotations

import dataclasses
import os
import sys
import textwrap
from typing import TYPE_CHECKING

from moat.cli.output import dumb, emit, emit_json

if TYPE_CHECKING:
    from moat.cli.demo import Check, Report

WIDTH = 80
_CLAIM = 50  # columns of a claim, when what was seen fits behind it
_TAIL = 6  # characters that are shown of the end of a credential


def as_json(report: Report) -> None:
    emit_json(
        {
            "holds": report.holds,
            "runtime": report.runtime,
            "run": report.run_id,
            "seconds": round(report.seconds, 2),
            "sides": [{k: shorten(v) for k, v in side.items()} for side in report.sides],
            "checks": [dataclasses.asdict(check) for check in report.checks],
        }
    )


def show(report: Report) -> None:
    emit(_bold(f"moat demo: one run in a real sandbox ({report.runtime}), {report.run_id}"))
    emit("The credentials were made up a moment ago. The origin is a TLS server on this")
    emit("machine that plays the hosts they are for. Everything else is as in any run.")
    emit("")
    emit(_bold(f"{'':<11}{'in the sandbox':<34}at the origin"))
    for side in report.sides:
        _side(side)
    for group, title in (
        ("credentials", "credentials"),
        ("echo", "answers that echo the request"),
        ("ways out", "ways out, tried from inside"),
        ("record", "what is left of the run"),
    ):
        emit("")
        emit(_bold(title))
        for check in report.checks:
            if check.group == group:
                _check(check)
    emit("")
    emit(verdict(report))


def verdict(report: Report) -> str:
    held = sum(check.holds for check in report.checks)
    count = f"{held} of {len(report.checks)} claims hold ({report.seconds:.1f} s)"
    if report.holds:
        return _paint("32;1", f"isolated: {count}")
    return _paint("31;1", f"NOT ISOLATED: {count}; do not rely on Moat on this machine")


def shorten(text: str, width: int = 33) -> str:
    """Both ends of a long value: enough to tell two apart, too little to use."""
    return text if len(text) <= width else f"{text[: width - _TAIL - 1]}…{text[-_TAIL:]}"


def _side(side: dict[str, str]) -> None:
    rows = (
        (side["grant"], side["where"], ""),
        ("  holds", shorten(side["sandbox"].removeprefix("Bearer "), 32), ""),
        ("  request", f"to {side['host']}", side["route"]),
        ("    header", "Authorization: Bearer", "Authorization: Bearer"),
        (
            "",
            shorten(side["sandbox"].removeprefix("Bearer "), 32),
            shorten(side["origin"].removeprefix("Bearer ")),
        ),
        ("  answer", shorten(side["echo"].removeprefix("Bearer "), 32), "echoes the header"),
    )
    for name, inside, outside in rows:
        emit(f"{name:<11}{inside:<34}{outside}".rstrip())


def _check(check: Check) -> None:
    mark = _paint("32", "ok") if check.holds else _paint("31;1", "NO")
    if len(check.claim) < _CLAIM and len(check.detail) <= WIDTH - _CLAIM - 6:
        emit(f"  {mark}  {check.claim:<{_CLAIM}}{_paint('2', check.detail)}")
        return
    emit(f"  {mark}  {check.claim}")
    for line in textwrap.wrap(check.detail, WIDTH - 8):
        emit(_paint("2", f"        {line}"))


def _bold(text: str) -> str:
    return _paint("1", text)


def _paint(code: str, text: str) -> str:
    plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ or dumb()
    return text if plain else f"\x1b[{code}m{text}\x1b[0m"
