"""Every run there is: what each command that looks at runs starts from.

Looking never waits and never writes. A run whose supervisor was killed is shown as lost; what it left behind
(container, mounts, directories) is removed by its warden, or by a sweep in the background that the next look
begins.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from moat.errors import MoatError, RunNotFoundError
from moat.paths import Home
from moat.runtime import records
from moat.runtime.records import RunRecord

_REAP_SECONDS = 30.0


def all_runs(home: Home) -> list[RunRecord]:
    """Newest first."""
    found = records.read_all(home)
    dead = [is_dead(home, record) for record in found]
    if any(dead):
        from moat.runtime import sweep  # hardly ever

        sweep.begin(home)
    return [
        records.lost(record) if gone and not record.state.ended else record
        for record, gone in zip(found, dead, strict=True)
    ]


def workspaces(home: Home) -> list[Path]:
    """Where agents could write. Who let one have the whole home directory has nothing else left."""
    try:
        places = {Path(run.workspace) for run in records.read_all(home)}
    except OSError:  # what is wrong with Moat's directory is told by who needs it
        return []
    return [place for place in sorted(places) if not Path.home().resolve().is_relative_to(place)]


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
    if record.directory:
        clear(home, record)
    forget(home, record.id)


def forget(home: Home, run_id: str) -> None:
    """Delete what is kept of a run, also of one without a record (`records.remnants`)."""
    from moat.journal import keeping  # listing does without

    if (home.root / "snapshots").exists():
        from moat.runtime.snapshots.retention import forget_run

        forget_run(home, run_id)
    keeping.forget(home, run_id)
    records.remove(home, run_id)


def size(home: Home, run_id: str) -> int:
    """Bytes on the disk that only this run takes; snapshots belong to a workspace and are not among them."""
    total = 0
    for place, _, names in os.walk(home.run(run_id)):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(f"{place}/{name}").st_blocks * 512
    return total


def is_dead(home: Home, record: RunRecord) -> bool:
    """Whether something of the run has to be cleared up, and nobody is there who would."""
    return (not record.state.ended or bool(record.directory)) and not records.owned(home.run(record.id))


def settle(home: Home, record: RunRecord) -> RunRecord:
    """Record a dead run as lost, and how far its journal got. Raises OSError on a full disk."""
    from moat.journal import keeping  # listing does without

    record = records.settle(home, record)
    if is_dead(home, record):
        with contextlib.suppress(OSError, MoatError):  # a full disk: `moat audit` tells what there is
            keeping.close_abandoned(home, record.id)
    return record


def clear(home: Home, record: RunRecord) -> RunRecord:
    """Record a dead run as lost and remove what is left of it. Blocks.

    Raises MoatError, OSError or TimeoutError when the runtime cannot clear up now; the run is then still
    dead, and the next one to try. A home that cannot be written keeps nothing from being removed.
    """
    unwritten: OSError | None = None
    try:
        record = settle(home, record)
    except OSError as error:
        unwritten = error
    if is_dead(home, record):
        _reap(record)
        if unwritten is None:
            record = records.released(home, record)
    if unwritten is not None:
        raise unwritten
    return record


def _reap(record: RunRecord) -> None:
    """Remove what the dead run left behind. Blocks; works with and without a running event loop."""
    from concurrent.futures import ThreadPoolExecutor

    import anyio

    from moat.runtime import mounts
    from moat.runtime.choice import runtime

    async def clear() -> None:
        with anyio.fail_after(_REAP_SECONDS):
            await runtime(record.runtime).reap(record.id)

    if record.runtime:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(anyio.run, clear).result()
    if record.directory:
        mounts.remove(Path(record.directory))
