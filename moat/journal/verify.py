"""Judges a journal: is it whole, unchanged and ours? Reads only, and trusts nothing that it reads.

Three kinds of finding: a problem (somebody changed something), a doubt (nobody can tell from what is
here), a note (an honest oddity, such as an end without a seal). docs/audit.md says what each state of a
run proves. An honest journal never has a problem, however its writer ended.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from moat.dataclass import dataclass
from moat.journal import entry, head as heads, ledger
from moat.journal.chain import chain, read
from moat.journal.entry import Entry, NotAnEntryError
from moat.journal.head import Head
from moat.journal.judged_ledger import Ledger
from moat.journal.key import public_key, verifies
from moat.journal.writer import HEAD
from moat.paths import Home

OK, TAMPERED, UNSURE = 0, 1, 3
JOURNAL = "journal.jsonl"
TRACE = "network.jsonl"
SEAL = "journal.sealed"
_MAYBE_CUT = "entries may have been cut off the end"


@dataclass(frozen=True, slots=True)
class Material:
    """All that is known of a journal, as bytes."""

    run: str
    journal: bytes | None  # None: there is no file
    head: bytes | None
    ledger: Sequence[bytes]  # the lines about this run
    alive: bool  # somebody still writes it
    boot: str  # of the machine, when this was read
    trace: bytes | None = None  # `network.jsonl`; None: it is not here, as in a bundle


@dataclass
class Report:
    """What was found. `status`: 0 proven, 1 tampered with, 3 it cannot be told."""

    run: str
    state: str = "missing"  # `running`, `sealed`, `unsealed`, `missing`
    entries: int = 0
    last: str = ""  # hash of the last entry
    key: str = ""  # public key that it names
    problems: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def status(self) -> int:
        """0 proven, 1 tampered with, 3 it cannot be told."""
        return TAMPERED if self.problems else UNSURE if self.doubts else OK

    def to_json(self) -> dict[str, Any]:
        """As `moat audit --json` prints it."""
        verdict = {OK: "proven", TAMPERED: "tampered", UNSURE: "unsure"}[self.status]
        return {
            "run": self.run,
            "verdict": verdict,
            "state": self.state,
            "entries": self.entries,
            "last": self.last,
            "key": self.key,
            "problems": self.problems,
            "doubts": self.doubts,
            "notes": self.notes,
        }


def run(home: Home, run_id: str, *, alive: bool, trusted: Collection[str] = ()) -> Report:
    """Judge the journal of a run of this installation."""
    keys = _keys(home, trusted)
    return _judge_run(home, run_id, Ledger.read(home, keys), keys, alive=alive)


def every(home: Home, alive: Collection[str], trusted: Collection[str] = ()) -> list[Report]:
    """Judge every journal that is there or that the ledger knows, and the ledger if it is not whole.

    `alive`: ids of runs with an owner.
    """
    keys = _keys(home, trusted)
    found = Ledger.read(home, keys)
    known = ledger.known(found.lines)
    ids = {name for name in known if name and not known[name].removed}
    if home.runs.is_dir():
        ids |= {path.parent.name for path in home.runs.glob(f"*/{JOURNAL}")}
    reports = []
    for name in sorted(ids):
        found = Ledger.read(home, keys, found)
        reports.append(_judge_run(home, name, found, keys, alive=name in alive))
    whole = of_ledger(home, trusted)
    if whole.status != OK and (found.lines or found.committed is not None):
        reports.append(whole)  # what was cut off it may have been all that was known of a run
    return reports


def of_ledger(home: Home, trusted: Collection[str] = ()) -> Report:
    """Judge the ledger alone."""
    keys = _keys(home, trusted)
    found = Ledger.read(home, keys)
    last = entry.digest(found.lines[-1]) if found.lines else entry.FIRST
    report = Report("the ledger", "running", len(found.lines), last, public_key(home) or "")
    report.problems += found.problems
    if found.headless:
        report.doubts.append(f"ledger.head is missing or torn: {_MAYBE_CUT}")
    if found.was_headless():
        report.doubts.append(f"ledger.head was missing or torn once ({ledger.HEADLESS}): {_MAYBE_CUT} there")
    if not keys:
        report.doubts.append("the key of this installation is not here")
    return report


def _keys(home: Home, trusted: Collection[str]) -> set[str]:
    ours = public_key(home)
    return {*trusted, *([ours] if ours else ())}


def _judge_run(home: Home, run_id: str, known: Ledger, keys: Collection[str], *, alive: bool) -> Report:
    """`known` was read before anything of the run is."""
    directory = home.run(run_id)
    head, journal = head_and_journal(directory)
    material = Material(
        run=run_id,
        journal=journal,
        head=head,
        ledger=known.about(run_id),
        alive=alive,
        boot=heads.boot_id(),
        trace=read(directory / TRACE) or b"",
    )
    report = judge(material, keys)
    report.problems += [f"the ledger: {text}" for text in known.problems]
    closed = ledger.known(material.ledger).get(run_id, ledger.Known("")).entries is not None
    if report.state == "unsealed" and not closed and (known.headless or known.was_headless(run_id)):
        # An older version of the journal would be whole as well.
        report.doubts.append(
            f"ledger.head is or was missing, which would tell an older journal: {_MAYBE_CUT}"
        )
    return report


def head_and_journal(directory: Path) -> tuple[bytes | None, bytes | None]:
    """What is in the two files of a run; the head is never newer than the journal."""
    head, journal = read(directory / HEAD), read(directory / JOURNAL)
    if not head and journal:  # the run began in between: its head is made before its first entry is written
        head, journal = read(directory / HEAD), read(directory / JOURNAL)
    return head, journal


def judge(material: Material, keys: Collection[str]) -> Report:
    """The one judgement. `keys`: public keys that are trusted; none: only consistency can be told."""
    report = Report(material.run)
    lines = (material.journal or b"").split(b"\n")
    torn = lines.pop()
    entries, problem = chain(lines, material.run)
    report.entries = len(lines)
    report.last = entry.digest(lines[-1]) if lines else entry.FIRST
    if problem:
        report.problems.append(problem)
    elif entries:
        _judge_signature(report, entries, keys)
    report.state = _state(material, entries, lines)
    if not problem:
        _judge_end(report, entries, torn)
    _judge_trace(report, material, entries)
    _judge_head(report, material, lines, report.key)
    _judge_ledger(report, material, lines)
    return report


def _judge_signature(report: Report, entries: list[Entry], keys: Collection[str]) -> None:
    """The last signature covers the chain, and so everything before it."""
    report.key = str(entries[0].data.get("key", ""))
    if entries[0].event != "journal.opened" or not verifies(
        report.key, entries[-1].signature, entries[-1].signed
    ):
        report.problems.append(f"the signature of entry {len(entries)} does not hold")
    elif keys and report.key not in keys:
        report.problems.append(f"it is signed with another key, {report.key}")
    elif not keys:
        report.doubts.append(
            f"it is whole if {report.key} is the key of whoever wrote it; without their word nobody can tell"
        )


def _state(material: Material, entries: list[Entry], lines: list[bytes]) -> str:
    if any(e.event == SEAL for e in entries) or (lines and _is_seal(lines[-1])):
        return "sealed"
    if material.alive:
        return "running"
    return "missing" if material.journal is None else "unsealed"


def _is_seal(line: bytes) -> bool:
    try:
        return entry.parse(line).event == SEAL
    except NotAnEntryError:
        return False


def _judge_end(report: Report, entries: list[Entry], torn: bytes) -> None:
    if report.state == "sealed":
        if torn or entries[-1].event != SEAL:
            report.problems.append("something stands behind the seal")
    elif report.state == "running":
        report.notes.append("the run goes on: this is what was recorded until now")
    elif report.state == "unsealed":
        report.notes.append("there is no seal: the run's owner was killed, or its disk was full at the end")
        if torn:
            report.notes.append("the last line is half: its writer ended while it wrote; it is not counted")


def _judge_trace(report: Report, material: Material, entries: list[Entry]) -> None:
    for found in entries:
        if found.event != "trace.closed" or material.trace is None:
            continue
        if found.data.get("sha256") != entry.digest(material.trace):
            report.problems.append(f"{TRACE} was changed")


def _judge_head(report: Report, material: Material, lines: list[bytes], key: str) -> None:
    head = heads.parse(material.head) if material.head is not None else None
    if head is None:
        if lines or material.head is not None:
            report.doubts.append(f"{HEAD} is missing or torn: entries may have been cut off the end")
        return
    if not key:
        return
    if head.run != material.run or not verifies(key, head.signature, head.signed):
        report.problems.append(f"{HEAD} was changed")
    elif head.seq > len(lines):
        _judge_missing(report, material, head, len(lines))
    elif head.hash != entry.digest(lines[head.seq - 1]):
        report.problems.append(f"entry {head.seq} is not the one that {HEAD} commits to")


def _judge_missing(report: Report, material: Material, head: Head, count: int) -> None:
    what = f"entries {count + 1} to {head.seq} are missing at the end"
    if head.synced > count or head.boot == material.boot:
        report.problems.append(what)
    else:
        report.doubts.append(f"{what}: cut off, or lost when the machine lost power")


def _judge_ledger(report: Report, material: Material, lines: list[bytes]) -> None:
    known = ledger.known(list(material.ledger)).get(material.run)
    if known is None or not known.first:
        if len(lines) > 1:
            report.problems.append("the ledger does not know this journal")
        elif not material.alive:
            report.doubts.append("nothing was recorded, and the ledger does not know the run")
        return
    if known.removed and not lines:
        report.state = "removed"
    elif not lines:
        report.problems.append("the journal is gone, and nobody removed the run with `moat destroy`")
    elif known.first != entry.digest(lines[0]):
        report.problems.append("the ledger knows a journal that began otherwise")
    elif known.entries is not None and (known.entries, known.last) != (len(lines), report.last):
        report.problems.append(f"the ledger closed it with {known.entries} entries and another end")
