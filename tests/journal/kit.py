"""Journals for tests, people who tamper with them, and full disks."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
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


@contextlib.contextmanager
def small_disk(directory: Path, size: str = "256k") -> Iterator[Path]:
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "none", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


@contextlib.contextmanager
def failing_disk(directory: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A disk, and what makes it fail: its file system finds an error and turns read-only, under open files too."""
    directory.mkdir()
    image = directory.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop,errors=remount-ro", image, directory], check=True)
    told = ["findmnt", "--noheadings", "--output", "SOURCE", directory]
    device = subprocess.run(told, check=True, capture_output=True, text=True).stdout.strip()

    def fail() -> None:
        Path("/sys/fs/ext4", Path(device).name, "trigger_fs_error").write_text("1")

    try:
        yield directory, fail
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def fill(directory: Path) -> Path:
    """Take every byte that is left."""
    path = directory / "ballast"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return path
