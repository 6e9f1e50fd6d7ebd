"""Runs that use a workspace, held still while it is restored, and told what was done to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moat.errors import MoatError
from moat.journal import ledger
from moat.paths import Home
from moat.runtime import control, known
from moat.runtime.control import Connection, Frame
from moat.runtime.records import RunRecord, State
from moat.runtime.snapshots.errors import SnapshotError
from moat.runtime.snapshots.store import Store

_PATIENCE = 20.0  # seconds for a supervisor to answer


def users(home: Home, workspace: str) -> list[RunRecord]:
    """The living runs whose workspace is this one, lies in it, or holds it."""
    place = Path(workspace)

    def touches(record: RunRecord) -> bool:
        other = Path(record.workspace)
        return place.is_relative_to(other) or other.is_relative_to(place)

    return [record for record in known.all_runs(home) if not record.state.ended and touches(record)]


@contextlib.contextmanager
def held(runs: list[RunRecord]) -> Iterator[None]:
    """Hold the sandboxes of `runs` still. They go on when this ends, or when this process dies.

    Raises SnapshotError when one of them cannot be held.
    """
    with contextlib.ExitStack() as stack:
        for record in runs:
            if record.state not in {State.RUNNING, State.STOPPING}:
                raise SnapshotError(
                    f"{record.name} is just starting in this workspace",
                    hint=f"try again in a moment, or: moat stop {record.name}",
                )
            run = stack.enter_context(Connection(record.socket, "control", timeout=_PATIENCE))
            run.send(control.pack(Frame.PAUSE))
            reason = _answer(run, Frame.PAUSED)
            if reason is not None:
                raise SnapshotError(
                    f"{record.name} cannot be paused: {reason}", hint=f"moat stop {record.name}"
                )
        yield


def note(home: Home, store: Store, runs: list[RunRecord], event: str, data: dict[str, Any]) -> None:
    """Journal an event in each living run; with none in the ledger, since a sealed journal stays as it is.

    Raises SnapshotError when it cannot be written anywhere: what it tells of is done.
    """
    told = False
    for record in runs:
        with (
            contextlib.suppress(MoatError, OSError),
            Connection(record.socket, "control", timeout=_PATIENCE) as run,
        ):
            run.send(control.pack_json(Frame.NOTE, {"event": event, "data": data}))
            told |= _answer(run, Frame.NOTED) is None
    if not told:
        try:
            ledger.note(home, event, workspace=store.workspace, **data)
        except OSError as error:
            raise SnapshotError(
                f"it is done, and could not be recorded: {error.strerror or error}",
                hint=f"free space in {home.journal}",
            ) from None


def _answer(run: Connection, wanted: Frame) -> str | None:
    """None when the answer is `wanted`, else why it is not."""
    try:
        while True:
            frame = run.receive()
            match frame:
                case (kind, _) if kind is wanted:
                    return None
                case (Frame.NOTICE, text):
                    return text.decode(errors="replace")
                case None | (Frame.EXIT, _):
                    return None if wanted is Frame.PAUSED else "it has ended"
    except OSError:
        return "its supervisor does not answer"
