"""Coverage-guided fuzzing of one target: `python -m tests.fuzz.fuzz TARGET [SECONDS] [libFuzzer options]`.

Starts from the target's file in `corpus/` and from the cases of `tests/proxy/corpus/`. What it finds is written
to `.cache/fuzz/TARGET/`; a crash ends it, is shown in the notation of the corpus, and belongs into that file.
`--minimise` merges everything found into the smallest set with the same coverage and rewrites the file.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz.seeds import load, notation, save, seeds

FOUND = Path(".cache/fuzz")
_LARGEST = 4096  # bytes of an input: limits have tests of their own


def main() -> int:
    target, *rest = sys.argv[1:]
    if rest[:1] == ["--minimise"]:
        return minimise(target)
    seconds = int(rest.pop(0)) if rest else 60
    found = FOUND / target
    found.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate([*seeds(target), *load(target)]):
        (found / f"seed-{number:04}").write_bytes(data)
    started = time.process_time()
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={_LARGEST}",
        f"-artifact_prefix={found}/",
        "-timeout=20",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.fuzz", "--child", target, str(found), *options, *rest]
    )
    used = os.times()
    print(
        f"{target}: {used.children_user + used.children_system + time.process_time() - started:.0f} s of CPU"
    )
    for crash in found.glob("crash-*"):
        print(f"{crash}:\n{notation(crash.read_bytes())}")
    return done.returncode


def minimise(target: str) -> int:
    """Keep, of all inputs found, the fewest with the same coverage; those that the cases reach are left out."""
    found, kept = FOUND / target, FOUND / f"{target}-kept"
    known = FOUND / f"{target}-known"
    for path in (kept, known):
        path.mkdir(parents=True, exist_ok=True)
        for old in path.iterdir():
            old.unlink()
    for number, data in enumerate(seeds(target)):
        (known / f"seed-{number:04}").write_bytes(data)
    merge = [sys.executable, "-m", "tests.fuzz.fuzz", "--child", target, "-merge=1", str(kept)]
    subprocess.run([*merge, str(known)], check=True)
    reached = {path.name for path in kept.iterdir()}
    subprocess.run([*merge, str(found)], check=True)
    fresh = [path.read_bytes() for path in kept.iterdir() if path.name not in reached]
    save(target, sorted(fresh, key=lambda data: (len(data), data)))
    print(f"{target}: {len(fresh)} inputs that the cases do not reach")
    return 0


def _again(target: str) -> Path:
    """A program that fuzzes `target`: libFuzzer runs what it believes to be itself when it merges."""
    path = FOUND / f"{target}.sh"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.fuzz.fuzz --child {target} "$@"\n')
    path.chmod(0o700)
    return path


def child(target: str, arguments: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["moat.proxy", "moat.authority", "h2", "hpack"]):
        from tests.fuzz.targets import TARGETS
    atheris.Setup([str(_again(target)), *arguments], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        child(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main())
