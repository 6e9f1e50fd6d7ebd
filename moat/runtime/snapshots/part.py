"""Snapshots as a part of a run: one before there is a sandbox, more while it runs."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import Process

from moat.errors import MoatError
from moat.runtime import codec
from moat.runtime.parts import Addition, Part, RunContext
from moat.runtime.sandbox import Sandbox
from moat.runtime.snapshots import hold
from moat.runtime.snapshots.githead import head
from moat.runtime.snapshots.store import Kind, Snapshot, Store, open_store
from moat.runtime.snapshots.take import Wish, take

if TYPE_CHECKING:
    from moat.runtime.snapshots.plan import Plan

_PATIENCE = 5.0  # seconds for the watcher to finish a snapshot
_QUIET = 0.5  # seconds that a run lasts at least to be watched
_log = logging.getLogger(__name__)


class Snapshots(Part):
    name = "snapshots"

    def __init__(self) -> None:
        self._run: RunContext | None = None
        self._store: Store | None = None
        self._sandbox: Sandbox | None = None
        self._watcher: Process | None = None
        self._head = ""  # commit before the run
        self._busy = False  # the watcher is taking a snapshot
        self._over = False

    async def prepare(self, run: RunContext) -> Addition:
        """Take the pre-run snapshot. Raises SnapshotError: without it the command must not start."""
        self._run = run
        self._store = store = open_store(run.home, run.request.workspace)
        self._head = head(Path(store.workspace))
        if run.request.snapshots.pre_run:
            given_up = threading.Event()
            try:
                snapshot = await anyio.to_thread.run_sync(
                    pre_run, store, run, given_up, abandon_on_cancel=True
                )
            finally:
                given_up.set()
            run.journal.record("snapshot.taken", **described(snapshot))
        return Addition()

    async def made(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    async def started(self) -> None:
        assert self._run is not None
        assert self._sandbox is not None
        config = self._run.request.snapshots
        if config.git_commits or config.builds or config.idle:
            self._run.start("snapshots", self._watch)

    async def ended(self) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let the watcher finish what it is at; what it has not begun it leaves."""
        self._over = True
        watcher, self._watcher = self._watcher, None
        if watcher is None:
            return
        if self._busy:
            assert watcher.stdin is not None
            await watcher.stdin.aclose()
            with anyio.move_on_after(_PATIENCE):
                await watcher.wait()
        if watcher.returncode is None:
            watcher.kill()  # at any moment that leaves the store as it was
        with anyio.CancelScope(shield=True):
            await watcher.wait()

    # --- the other process -----------------------------------------------------------------------

    def _plan(self, *, first_pid: int) -> Plan:
        from moat.runtime.snapshots.plan import Plan  # most runs end before they are watched

        assert self._run is not None
        assert self._store is not None
        return Plan(
            root=self._store.root,
            workspace=self._store.workspace,
            run=self._run.id,
            config=self._run.request.snapshots,
            first_pid=first_pid,
            head=self._head,
        )

    async def _watch(self) -> None:
        """Its end is not the run's: snapshots are then missing, and the journal says so."""
        assert self._run is not None
        assert self._sandbox is not None
        await anyio.sleep(_QUIET)
        pid = await self._sandbox.first_pid() if self._run.request.snapshots.builds else 0
        if self._over:
            return
        from moat.runtime.snapshots import beside

        self._watcher = watcher = await beside.start(self._plan(first_pid=pid))
        await beside.hear(watcher, self._note)
        if not self._over:
            _log.error("the snapshot watcher ended")
            self._run.journal.record("snapshot.failed", kind="any", error="the process that takes them ended")

    def _note(self, word: dict[str, Any]) -> None:
        assert self._run is not None
        record = self._run.journal.record
        self._busy = "busy" in word
        match word:
            case {"taken": dict(value)}:
                record("snapshot.taken", **described(codec.decode(Snapshot, value)))
            case {"removed": list(ids)}:
                record("snapshot.removed", ids=ids, why="retention")
            case {"failed": str(text), "kind": str(kind)}:
                _log.warning("no %s snapshot: %s", kind, text)
                record("snapshot.failed", kind=kind, error=text)


def pre_run(store: Store, run: RunContext, given_up: threading.Event) -> Snapshot:
    """Blocks. Raises SnapshotError."""
    progress = run.progress

    def tell(entries: int, size: int) -> None:
        if given_up.is_set():
            raise MoatError("given up")
        if entries and entries % 1024 == 0:
            progress(f"keeping a snapshot of the workspace: {entries:,} files, {size >> 20} MiB read")

    others = any(user.id != run.id for user in hold.users(run.home, store.workspace))
    wish = Wish.of(run.request.snapshots, Kind.PRE_RUN, run.id)
    with store.exclusive(lambda: progress("waiting for another snapshot of this workspace")):
        snapshot = take(store, wish, tell=tell, living=others)
    assert snapshot is not None
    return snapshot


def described(snapshot: Snapshot) -> dict[str, Any]:
    """What the journal says of a snapshot."""
    return {
        "id": snapshot.id,
        "kind": snapshot.kind,
        "label": snapshot.label,
        "tree": snapshot.tree,
        "files": snapshot.files,
        "added": snapshot.added,
    }
