"""Start-up of the quick commands: wall time of whole processes, next to a bare interpreter.

    python benchmarks/startup.py [--rounds 30] [--json] [--check]

The commands run in turn, round after round, so that what else the machine does falls on all alike. The
budget is a ratio to the bare interpreter, because it holds on any machine; `--check` fails when a median
is over twice its budget (a busy machine is not a regression).
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
# name -> (argv, budget as a multiple of the bare interpreter; None: shown only)
CASES: dict[str, tuple[list[str], float | None]] = {
    "bare interpreter": ([sys.executable, "-I", "-c", "pass"], None),
    "moat --help": ([MOAT, "--help"], 1.5),
    "moat version": ([MOAT, "version"], 2.5),
    "moat list": ([MOAT, "list"], 3.5),
    "moat list (100)": ([MOAT, "list"], 4.0),
    "moat grant list": ([MOAT, "grant", "list"], 5.0),
    "moat run --help": ([MOAT, "run", "--help"], 6.5),
}


def once(argv: list[str], environment: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    return (time.perf_counter() - started) * 1000


def hundred_runs(place: Path) -> Path:
    """A MOAT_HOME with as many runs that have ended."""
    for number in range(100):
        directory = place / f"many/runs/run_{number:012x}"
        directory.mkdir(parents=True, mode=0o700)
        record = {
            "id": directory.name,
            "name": f"run-{number}",
            "workspace": "/w",
            "argv": ["true"],
            "created_at": float(number),
            "state": "stopped",
        }
        (directory / "run.json").write_text(json.dumps(record))
    return place / "many"


def measure(rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every case, `rounds` times, after one warm-up."""
    with tempfile.TemporaryDirectory() as home:
        environment = {"PATH": os.environ["PATH"], "HOME": home, "MOAT_HOME": f"{home}/.moat"}
        many = str(hundred_runs(Path(home)))
        times: dict[str, list[float]] = {name: [] for name in CASES}
        for number in range(rounds + 1):
            for name, (argv, _) in CASES.items():
                elapsed = once(argv, environment | ({"MOAT_HOME": many} if "100" in name else {}))
                if number:
                    times[name].append(elapsed)
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    times = measure(options.rounds)
    bare = statistics.median(times["bare interpreter"])
    rows = [
        {
            "case": name,
            "min_ms": round(min(values), 1),
            "median_ms": round(statistics.median(values), 1),
            "ratio": round(statistics.median(values) / bare, 2),
            "budget": CASES[name][1],
        }
        for name, values in times.items()
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        print(f"{'':<18}{'min ms':>8}{'median ms':>11}{'ratio':>7}{'budget':>8}")
        for row in rows:
            print(
                f"{row['case']:<18}{row['min_ms']:>8}{row['median_ms']:>11}{row['ratio']:>7}"
                f"{row['budget'] or '':>8}"
            )
    over = [row["case"] for row in rows if row["budget"] and row["ratio"] > 2 * row["budget"]]
    if options.check and over:
        print(f"far over budget: {', '.join(over)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
