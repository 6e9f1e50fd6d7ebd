"""Every run there is, with the dead ones settled: what each command that looks at runs starts from.

A run whose supervisor was killed is recorded as failed, and its runtime removes what it left behind
(container, mounts, directories). Runs that are alive are never written to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil

from moat.errors import MoatError, RunNotFoundError
from moat.paths import Home
from moat.runtime import records
from moat.runtime.records import RunRecord

_REAP_SECONDS = 30.0


def all_runs(home: Home) -> list[RunRecord]:
    """Newest first."""
    return [_settled(home, record) for record in records.read_all(home)]


def find(home: Home, text: str | None) -> RunRecord:
    """The run that `text` means, by id, id prefix or name; None: the newest. Raises RunNotFoundError."""
    runs = all_runs(home)
    if text is not None:
        return records.pick(runs, text)
    if not runs:
        raise RunNotFoundError("there are no runs", hint="moat run -- <command>")
    return runs[0]


def one_alive(home: Home) -> RunRecord:
    """The only run that is alive. Raises RunNotFoundError when there is none or more than one."""
    alive = [run for run in all_runs(home) if not run.state.ended]
    if len(alive) == 1:
        return alive[0]
    if not alive:
        raise RunNotFoundError("no run is running", hint="`moat list` shows the runs")
    raise records.AmbiguousRunError("no name", alive)


def remove(home: Home, record: RunRecord) -> None:
    """Forget a run that has ended: its record, logs, snapshots and whatever a crash left of it.

    The ledger of journals keeps that it was removed on purpose. Raises StartError when its runtime cannot
    clear up now.
    """
    from moat.journal import keeping  # listing does without

    if record.directory:
        _reap(record)
    if (home.root / "snapshots").exists():
        from moat.runtime.snapshots.retention import forget_run

        forget_run(home, record.id)
    keeping.forget(home, record.id)
    records.remove(home, record.id)


def _settled(home: Home, record: RunRecord) -> RunRecord:
    if record.state.ended or records.owned(home.run(record.id)):
        return record
    record, by_us = records.settle(home, record)
    if by_us:
        from moat.journal import keeping  # listing does without

        with contextlib.suppress(OSError, MoatError):  # a full disk: `moat audit` tells what there is
            keeping.close_abandoned(home, record.id)
        try:
            _reap(record)
        except Exception as error:  # the engine may be down; `destroy` and `clean` try again and tell
            import logging  # 13 ms, for nothing but this

            logging.getLogger(__name__).debug("leftovers of %s were not removed: %s", record.id, error)
        else:
            record = dataclasses.replace(record, directory="")
            records.write(home, record)
    return record


def _reap(record: RunRecord) -> None:
    """Remove what the dead run left behind. Blocks; works with and without a running event loop."""
    from concurrent.futures import ThreadPoolExecutor

    import anyio

    from moat.runtime.choice import runtime

    async def clear() -> None:
        with anyio.fail_after(_REAP_SECONDS):
            await runtime(record.runtime).reap(record.id)

    if record.runtime:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(anyio.run, clear).result()
    if record.directory:
        shutil.rmtree(record.directory, ignore_errors=True)
