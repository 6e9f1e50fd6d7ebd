"""Journals for tests, and people who tamper with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moat.journal import Journal, keeping, ledger, verify
from moat.journal.writer import HEAD
from moat.paths import Home

RUN = "run_0123456789ab"


@dataclass
class Kept:
    """The journal of one run in a home of its own."""

    home: Home
    run: str

    @property
    def journal(self) -> Path:
        return self.home.run(self.run) / keeping.FILE

    @property
    def head(self) -> Path:
        return self.home.run(self.run) / HEAD

    @property
    def lines(self) -> list[bytes]:
        return self.journal.read_bytes().splitlines(keepends=True)

    def write(self, lines: list[bytes]) -> None:
        self.journal.write_bytes(b"".join(lines))

    def verify(self, *, alive: bool = False) -> verify.Report:
        return verify.run(self.home, self.run, alive=alive)


def begin(home: Home, run: str = RUN) -> tuple[Kept, Journal]:
    home.run(run).mkdir(parents=True, mode=0o700)
    return Kept(home, run), keeping.begin(home, run)


def make(home: Home, run: str = RUN, *, events: int = 5, end: str = "sealed") -> Kept:
    """A journal with `events` events; `end`: `sealed`, or `crashed` as by kill -9."""
    kept, journal = begin(home, run)
    for number in range(events):
        journal.record("run.stop_asked", by=f"{number} of {run}")
    if end == "sealed":
        keeping.end(home, run, journal)
    else:
        journal.close()
    return kept


def ledger_file(home: Home) -> Path:
    return ledger.path_of(home)
