"""What a run costs over its sandbox: wall time of whole commands, next to the least that does the same.

    python benchmarks/runs.py [--rounds 20] [--runtime embedded|docker]... [--json]

`moat run -- true` in an empty workspace, with all that is on by default (proxy, journal, snapshot), beside

embedded  a bare interpreter, then a bare `bwrap --unshare-all … true`
docker    `docker run --rm` with the flags of a run's container (`--network none`, no capability, init…)

The commands take turns, round after round, so that what else the machine does falls on all alike.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MOAT = str(Path(sys.executable).parent / "moat")
IMAGE = "debian:bookworm-slim"
BWRAP = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "true"]
DOCKER = [
    "docker", "run", "--rm", "--network", "none", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
    "--init", "--pids-limit", "1024", "--memory", "4g", "--user", "64123:64123", IMAGE, "true",
]  # fmt: skip
_NOTHING = subprocess.DEVNULL
PYTHON = [sys.executable, "-c", "pass"]


def once(commands: list[list[str]], environment: dict[str, str], cwd: str) -> float:
    """Milliseconds for `commands` one after the other."""
    started = time.perf_counter()
    for argv in commands:
        subprocess.run(
            argv, env=environment, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, check=True
        )
    return (time.perf_counter() - started) * 1000


def measure(cases: dict[str, list[list[str]]], rounds: int) -> dict[str, list[float]]:
    """Of every case, `rounds` times after one warm-up, with a MOAT_HOME and a workspace of their own."""
    with tempfile.TemporaryDirectory() as home:
        workspace = f"{home}/workspace"
        os.mkdir(workspace)
        environment = {"PATH": os.environ["PATH"], "HOME": home, "MOAT_HOME": f"{home}/.moat"}
        times: dict[str, list[float]] = {name: [] for name in cases}
        for number in range(rounds + 1):
            for name, commands in cases.items():
                elapsed = once(commands, environment, workspace)
                if number:
                    times[name].append(elapsed)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--runtime", action="append", choices=("embedded", "docker"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    reference = {"embedded": [PYTHON, BWRAP], "docker": [DOCKER]}
    rows = []
    for runtime in options.runtime or list(reference):
        ours = [[MOAT, "run", "--runtime", runtime, "--", "true"]]
        times = measure({"reference": reference[runtime], "moat": ours}, options.rounds)
        pairs = [a / b for a, b in zip(times["moat"], times["reference"], strict=True)]
        rows.append(
            {"runtime": runtime, "ratio": round(statistics.median(pairs), 2)}
            | {f"{name}_ms": round(statistics.median(values)) for name, values in times.items()}
            | {f"{name}_best_ms": round(min(values)) for name, values in times.items()}
        )
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'':<10}{'reference ms':>14}{'moat ms':>10}{'ratio':>8}{'best ms':>10}{'best of moat':>14}")
    for row in rows:
        print(
            f"{row['runtime']:<10}{row['reference_ms']:>14}{row['moat_ms']:>10}{row['ratio']:>8}"
            f"{row['reference_best_ms']:>10}{row['moat_best_ms']:>14}"
        )


if __name__ == "__main__":
    main()
