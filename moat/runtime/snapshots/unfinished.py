"""No command begins, or goes on, in a half restored workspace; of every run, with snapshots or without."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyio import to_thread

from moat.config import SnapshotConfig
from moat.runtime.parts import Addition, Part, RunContext
from moat.runtime.snapshots.errors import SnapshotError

if TYPE_CHECKING:
    from moat.runtime.snapshots.store import Store


class Unfinished(Part):
    name = "restores"

    def __init__(self) -> None:
        self._run: RunContext | None = None

    async def prepare(self, run: RunContext) -> Addition:
        """Wait for a restore that goes on. Raises SnapshotError for one that was cut off."""
        self._run = run
        for store in self._stores():
            await to_thread.run_sync(_wait, store)
            if _cut_off(store):
                raise SnapshotError(
                    f"a restore of {store.workspace} was cut off and is not complete",
                    hint=f"`moat snapshot restore --continue` completes it (in {store.workspace})",
                )
        return Addition()

    async def resuming(self) -> None:
        """Whoever restored may have died on the way."""
        from moat.runtime.snapshots import beside
        from moat.runtime.snapshots.plan import Plan

        assert self._run is not None
        for store in self._stores():
            if _cut_off(store):
                plan = Plan(
                    root=store.root,
                    workspace=store.workspace,
                    run=self._run.id,
                    config=SnapshotConfig(),
                    first_pid=0,
                    recover=True,
                )
                async with await beside.start(plan) as process:
                    await beside.hear(process, self._note)

    def _stores(self) -> list[Store]:
        """Of this workspace, of one around it, and of one in it."""
        assert self._run is not None
        if not (self._run.home.root / "snapshots").exists():
            return []
        from moat.runtime.snapshots.store import stores  # not before something was ever kept

        place = Path(os.path.realpath(self._run.request.workspace))
        return [
            store
            for store in stores(self._run.home)
            if place.is_relative_to(store.workspace) or Path(store.workspace).is_relative_to(place)
        ]

    def _note(self, word: dict[str, Any]) -> None:
        assert self._run is not None
        match word:
            case {"recovered": str(target)}:
                self._run.journal.record("snapshot.restored", id=target, why="a restore was cut off")
            case {"failed": str(text), "kind": str(kind)}:
                self._run.journal.record("snapshot.failed", kind=kind, error=text)


def _wait(store: Store) -> None:
    with store.reading():
        """Whoever restores holds the lock alone."""


def _cut_off(store: Store) -> bool:
    from moat.runtime.snapshots.pending import read_pending

    return read_pending(store) is not None
