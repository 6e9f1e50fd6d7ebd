r"""`moat audit --export`: one file that holds a journal with everything that its judgement needs.

JSON: `format`, `run`, `alive`, `boot`, `key`, and as exact text (bytes that are no UTF-8 as `\udcXX`)
`journal` (a list of lines), `torn` (what follows the last line feed), `head` (or null) and `ledger` (the
lines about this run). Only what is signed in it proves anything.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from moat.errors import UsageError
from moat.journal import entry, head, ledger, verify
from moat.journal.entry import NotAnEntryError
from moat.journal.key import public_key, verifies
from moat.journal.verify import Material, Report
from moat.paths import Home

FORMAT = "moat-audit/1"


def export(home: Home, run: str, *, alive: bool) -> bytes:
    """The bundle of a run. Raises UsageError when it has no journal."""
    directory = home.run(run)
    lines = ledger.about(ledger.lines(home), run)
    committed, journal = verify.head_and_journal(directory)
    if journal is None:
        raise UsageError(f"{run} has no journal", hint="`moat audit --verify` tells more")
    *whole, torn = journal.split(b"\n")
    found = {
        "format": FORMAT,
        "run": run,
        "alive": alive,
        "boot": head.boot_id(),
        "key": public_key(home),
        "journal": [_text(line) for line in whole],
        "torn": _text(torn),
        "head": None if committed is None else _text(committed),
        "ledger": [_text(line) for line in lines],
    }
    return (json.dumps(found, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "backslashreplace")


def judge(data: bytes, trusted: Collection[str]) -> Report:
    """The judgement over a bundle. Raises UsageError for what is not one."""
    try:
        found = json.loads(data)
        material = _material(found)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UsageError("this is not a bundle of `moat audit --export`") from None
    report = verify.judge(material, trusted)
    keys = trusted or {report.key}
    report.problems += [
        "a line of the ledger was changed"
        for line in material.ledger
        if not _signed(line, material.run, keys)
    ]
    if not report.entries and report.state != "removed":
        report.doubts.append("there is nothing in it")
    return report


def _material(found: dict[str, Any]) -> Material:
    if found["format"] != FORMAT:
        raise ValueError(found["format"])
    committed = found["head"]
    return Material(
        run=str(found["run"]),
        journal=b"".join(_bytes(line) + b"\n" for line in found["journal"]) + _bytes(found["torn"]),
        head=None if committed is None else _bytes(committed),
        ledger=[_bytes(line) for line in found["ledger"]],
        alive=found["alive"] is True,
        boot=str(found["boot"]),
    )


def _signed(line: bytes, run: str, keys: Collection[str]) -> bool:
    try:
        found = entry.parse(line)
    except NotAnEntryError:
        return False
    return found.run == run and any(verifies(key, found.signature, found.signed) for key in keys)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
