"""What the journal costs: microseconds of CPU per operation, in this process.

python benchmarks/journal.py [--count 3000]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from moat.journal import keeping, verify
from moat.paths import Home
from moat.runtime.witness import Witness

RUN = "run_000000000000"


def cpu(name: str, count: int, work: Callable[[], object]) -> None:
    started = time.process_time()
    work()
    print(f"{name:<44} {(time.process_time() - started) / count * 1e6:9.1f} µs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=3000)
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as directory:
        home = Home(Path(directory))
        home.run(RUN).mkdir(parents=True, mode=0o700)
        cpu("begin a journal (key made, ledger synced)", 1, lambda: keeping.begin(home, RUN).close())
        run = "run_000000000001"
        home.run(run).mkdir(mode=0o700)
        journal = keeping.begin(home, run)
        cpu("record an entry", count, lambda: [journal.record("run.started") for _ in range(count)])
        witness = Witness(journal)
        witness.on_use(0, "api.example.com:443", ("github",))

        def uses() -> None:
            for number in range(count):
                witness.on_use(number, "api.example.com:443", ("github",))

        cpu("use a credential that is known", count, uses)
        cpu(f"note {count} uses in one entry", 1, witness.flush)
        cpu("seal (two syncs, ledger)", 1, lambda: keeping.end(home, run, journal))
        cpu("verify an entry", count, lambda: verify.run(home, run, alive=False))
        assert verify.run(home, run, alive=False).status == verify.OK


if __name__ == "__main__":
    main()
