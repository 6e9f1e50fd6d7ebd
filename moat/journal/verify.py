"""Judges a journal: is it whole, unchanged and ours? Reads only, and trusts nothing that it reads.

Three kinds of finding: a problem (somebody changed something), a doubt (nobody can tell from what is
here), a note (an honest oddity, such as an end without a seal). docs/audit.md says what each state of a
run proves. An honest journal never has a problem, however its writer ended.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import field
from typing import Any

from moat.dataclass import dataclass
from moat.journal import entry, head as heads, ledger
from moat.journal.entry import Entry, NotAnEntryError
from moat.journal.head import Head
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
        return TAMPERED if self.problems else UNSURE if self.doubts else OK

    def to_json(self) -> dict[str, Any]:
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
    ours = public_key(home)
    # Older things first: each was written after the ones that are read later.
    committed = read(ledger.head_of(home))
    lines = ledger.lines(home)
    directory = home.run(run_id)
    head = read(directory / HEAD)
    material = Material(
        run=run_id,
        journal=read(directory / JOURNAL),
        head=head,
        ledger=ledger.about(lines, run_id),
        alive=alive,
        boot=heads.boot_id(),
        trace=read(directory / TRACE) or b"",
    )
    keys = {*trusted, *([ours] if ours else ())}
    report = judge(material, keys)
    report.problems += [f"the ledger: {text}" for text in ledger_problems(lines, committed, keys)]
    return report


def every(home: Home, alive: Collection[str], trusted: Collection[str] = ()) -> list[Report]:
    """Judge every journal that is there or that the ledger knows. `alive`: ids of runs with an owner."""
    known = ledger.known(ledger.lines(home))
    ids = {name for name in known if name and not known[name].removed}
    if home.runs.is_dir():
        ids |= {path.parent.name for path in home.runs.glob(f"*/{JOURNAL}")}
    return [run(home, name, alive=name in alive, trusted=trusted) for name in sorted(ids)]


def of_ledger(home: Home, trusted: Collection[str] = ()) -> Report:
    """Judge the ledger alone."""
    ours = public_key(home)
    committed = read(ledger.head_of(home))
    lines = ledger.lines(home)
    keys = {*trusted, *([ours] if ours else ())}
    last = entry.digest(lines[-1]) if lines else entry.FIRST
    report = Report("the ledger", "running", len(lines), last, ours or "")
    report.problems += ledger_problems(lines, committed, keys)
    if lines and (committed is None or heads.parse(committed) is None):
        report.doubts.append(f"ledger.head is missing or torn: {_MAYBE_CUT}")
    if any(b'"event":"' + ledger.HEADLESS.encode() in line for line in lines):
        report.doubts.append(f"ledger.head was missing or torn once ({ledger.HEADLESS}): {_MAYBE_CUT} there")
    if not keys:
        report.doubts.append("the key of this installation is not here")
    return report


def ledger_problems(lines: Sequence[bytes], committed: bytes | None, keys: Collection[str]) -> list[str]:
    """What is wrong with the chain of the ledger. `committed`: its head, read before `lines` were."""
    entries, problem = chain(lines)
    if problem:
        return [problem]
    if entries and keys and not _signed(entries[-1], keys):
        return ["its last line is not signed by this installation"]
    head = heads.parse(committed) if committed is not None else None
    if head is None or not keys:
        return []
    if head.run or not any(verifies(key, head.signature, head.signed) for key in keys):
        return ["ledger.head was changed"]
    if head.seq > len(lines):
        return [f"entries {len(lines) + 1} to {head.seq} are missing at the end"]
    if head.hash != entry.digest(lines[head.seq - 1]):
        return [f"entry {head.seq} is not the one that ledger.head commits to"]
    return []


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


def chain(lines: Sequence[bytes], run_id: str | None = None) -> tuple[list[Entry], str]:
    """The entries up to the first that does not belong where it stands, and what is wrong there."""
    entries: list[Entry] = []
    for number, line in enumerate(lines, 1):
        try:
            found = entry.parse(line)
        except NotAnEntryError as error:
            return entries, f"entry {number} was changed: {error}"
        before = entries[-1] if entries else None
        if found.seq > number:
            return entries, f"entries {number} to {found.seq - 1} are missing"
        if found.seq < number:
            return entries, f"entry {number} was inserted or moved: it says it is number {found.seq}"
        if run_id is not None and found.run != run_id:
            return entries, f"entry {number} is of another run, {found.run}"
        if found.prev != (entry.digest(before.line) if before else entry.FIRST):
            return entries, _changed(entries, number)
        entries.append(found)
    return entries, ""


def _changed(entries: list[Entry], number: int) -> str:
    """Which of two entries that do not fit together was changed, in words."""
    before = entries[-1] if entries else None
    key = str(entries[0].data.get("key", "")) if entries else ""
    if before and key and not verifies(key, before.signature, before.signed):
        return f"entry {number - 1} was changed"
    return f"entry {number} does not follow what stands before it: one of them was changed"


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


def _signed(found: Entry, keys: Collection[str]) -> bool:
    return any(verifies(key, found.signature, found.signed) for key in keys)


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
        if len(lines) > 1 or material.head is not None:
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


def read(path: Any) -> bytes | None:
    try:
        return bytes(path.read_bytes())
    except FileNotFoundError:
        return None
