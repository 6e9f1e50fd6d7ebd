"""Snapshots of a workspace of 20,000 files and 1 GB: Moat, restic and git, in turn in every round.

    python benchmarks/snapshots.py [--rounds 3] [--place DIR]

restic is Debian's package. git is what `git stash create` does, without touching the user's index: `add -A`
into an index of its own and `write-tree` (loose objects, compressed at level 0, the cheapest it has).
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from moat.paths import Home
from moat.runtime.snapshots.retention import collect
from moat.runtime.snapshots.store import Kind, Store, open_store
from moat.runtime.snapshots.take import Wish, take

FILES, DIRECTORIES, SIZE = 20_000, 400, 50_000
CHANGED = 100


def make(workspace: Path) -> None:
    for number in range(DIRECTORIES):
        directory = workspace / f"package-{number:03}" / "src"
        directory.mkdir(parents=True)
        for name in range(FILES // DIRECTORIES):
            (directory / f"file-{name:02}.bin").write_bytes(os.urandom(SIZE))


def change(workspace: Path) -> None:
    for path in sorted(workspace.rglob("*.bin"))[:: FILES // CHANGED]:
        path.write_bytes(os.urandom(SIZE))


def timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


class Moat:
    name = "moat"

    def __init__(self, place: Path, workspace: Path) -> None:
        self._store: Store = open_store(Home(place / "moat"), workspace)

    def snapshot(self) -> None:
        with self._store.exclusive():
            take(self._store, Wish(kind=Kind.MANUAL))

    def collect(self) -> None:
        with self._store.exclusive():
            collect(self._store)


class Restic:
    name = "restic"

    def __init__(self, place: Path, workspace: Path) -> None:
        self._workspace = workspace
        self._environment = os.environ | {
            "RESTIC_PASSWORD": "benchmark",
            "RESTIC_REPOSITORY": str(place / "restic"),
            "RESTIC_CACHE_DIR": str(place / "restic-cache"),
        }
        self._call("init")

    def snapshot(self) -> None:
        self._call("backup", str(self._workspace))

    def _call(self, *words: str) -> None:
        subprocess.run(["restic", "-q", *words], check=True, env=self._environment, stdout=subprocess.DEVNULL)


class Git:
    name = "git"

    def __init__(self, place: Path, workspace: Path) -> None:
        self._git = ["git", "-c", "core.compression=0", "-c", "gc.auto=0", f"--work-tree={workspace}"]
        self._environment = os.environ | {
            "GIT_DIR": str(place / "git"),
            "GIT_INDEX_FILE": str(place / "index"),
        }
        self._call("init", "-q")

    def snapshot(self) -> None:
        self._call("add", "-A")
        self._call("write-tree")

    def _call(self, *words: str) -> None:
        subprocess.run([*self._git, *words], check=True, env=self._environment, stdout=subprocess.DEVNULL)


def baseline(place: Path, workspace: Path) -> tuple[float, float]:
    """`cp -a --reflink=auto`, and reading and hashing everything with the fastest SHA-256 on the machine."""
    copying = timed(
        lambda: subprocess.run(["cp", "-a", "--reflink=auto", workspace, place / "copy"], check=True)
    )
    shutil.rmtree(place / "copy")
    script = 'find "$1" -type f -print0 | xargs -0 openssl dgst -sha256 >/dev/null'
    hashing = timed(lambda: subprocess.run(["sh", "-c", script, "sh", workspace], check=True))
    return copying, hashing


def one_round(place: Path, workspace: Path) -> None:
    os.sync()
    copying, hashing = baseline(place, workspace)
    print(f"{'cp + hash':<8} {copying:6.2f} + {hashing:.2f} = {copying + hashing:.2f} s")
    for tool in (Moat, Restic, Git):
        scratch = place / f"tool-{tool.name}"
        scratch.mkdir()
        os.sync()
        it = tool(scratch, workspace)
        first = timed(it.snapshot)
        unchanged = min(timed(it.snapshot) for _ in range(3))
        change(workspace)
        changed = timed(it.snapshot)
        ratio = first / (copying + hashing)
        print(
            f"{tool.name:<8} first {first:6.2f} s ({ratio:.2f} x)  unchanged {unchanged:5.2f} s  "
            f"{CHANGED} changed {changed:5.2f} s"
        )
        shutil.rmtree(scratch)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--place", type=Path, help="a directory on the file system to measure")
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="moat-bench-", dir=options.place))
    try:
        workspace = place / "workspace"
        make(workspace)
        time.sleep(3)  # files of this very moment are read twice by everybody
        print(platform.release(), platform.python_version(), "load", os.getloadavg())
        for _ in range(options.rounds):
            one_round(place, workspace)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
