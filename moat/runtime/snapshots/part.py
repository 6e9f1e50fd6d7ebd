"""Snapshots as a part of a run: one before there is a sandbox, more while it runs."""

from __future__ import annotations

import json
import logging
import sys
import threading
from pathlib import Path
from subprocess import PIPE
from typing import Any

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from moat import errors
from moat.config import SnapshotConfig
from moat.errors import MoatError
from moat.runtime import codec
from moat.runtime.parts import Addition, Part, RunContext
from moat.runtime.sandbox import Progress, Sandbox
from moat.runtime.snapshots import hold
from moat.runtime.snapshots.errors import SnapshotError
from moat.runtime.snapshots.githead import head
from moat.runtime.snapshots.pending import read_pending
from moat.runtime.snapshots.plan import Plan
from moat.runtime.snapshots.store import Kind, Snapshot, Store, open_store
from moat.runtime.snapshots.take import Wish, take

# As in `launch`: found also where Moat is not installed, and nothing is imported from a workspace.
_PROGRAM = "import sys; sys.path.append(sys.argv[1]); import moat.runtime.snapshots.watcher as w; w.main()"
_MOST = 1 << 20  # bytes of a line of the watcher
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
        if read_pending(store) is not None:
            raise SnapshotError(
                f"a restore of {store.workspace} was cut off and is not complete",
                hint="`moat snapshot restore --continue` completes it; --no-snapshots starts all the same",
            )
        self._head = head(Path(store.workspace))
        if run.request.snapshots.pre_run:
            given_up = threading.Event()
            others = [user for user in hold.users(run.home, store.workspace) if user.id != run.id]
            try:
                snapshot = await anyio.to_thread.run_sync(
                    pre_run,
                    store,
                    run.request.snapshots,
                    run.id,
                    run.progress,
                    given_up,
                    bool(others),
                    abandon_on_cancel=True,
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

    async def resuming(self) -> None:
        """Whoever restored may have died on the way: the agent does not go on in a half restored tree."""
        assert self._store is not None
        if read_pending(self._store) is None:
            return
        process = await self._start(self._plan(first_pid=0, recover=True))
        async with process:
            await self._hear(process)

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

    def _plan(self, *, first_pid: int, recover: bool = False) -> Plan:
        assert self._run is not None
        assert self._store is not None
        return Plan(
            root=self._store.root,
            workspace=self._store.workspace,
            run=self._run.id,
            config=self._run.request.snapshots,
            first_pid=first_pid,
            head=self._head,
            recover=recover,
        )

    async def _start(self, plan: Plan) -> Process:
        place = str(Path(errors.__file__).parent.parent)
        process = await anyio.open_process(
            [sys.executable, "-P", "-c", _PROGRAM, place], stdin=PIPE, stdout=PIPE, stderr=None, cwd="/"
        )
        assert process.stdin is not None
        await process.stdin.send(json.dumps(codec.encode(plan)).encode() + b"\n")
        return process

    async def _watch(self) -> None:
        """Its end is not the run's: snapshots are then missing, and the journal says so."""
        assert self._run is not None
        assert self._sandbox is not None
        await anyio.sleep(_QUIET)
        pid = await self._sandbox.first_pid() if self._run.request.snapshots.builds else 0
        if self._over:
            return
        self._watcher = watcher = await self._start(self._plan(first_pid=pid))
        await self._hear(watcher)
        if not self._over:
            _log.error("the snapshot watcher ended")
            self._run.journal.record("snapshot.failed", kind="any", error="the process that takes them ended")

    async def _hear(self, process: Process) -> None:
        assert process.stdout is not None
        lines = BufferedByteReceiveStream(process.stdout)
        while True:
            try:
                line = await lines.receive_until(b"\n", _MOST)
            except (anyio.IncompleteRead, anyio.ClosedResourceError, anyio.BrokenResourceError):
                return
            self._note(json.loads(line))

    def _note(self, word: dict[str, Any]) -> None:
        assert self._run is not None
        record = self._run.journal.record
        self._busy = "busy" in word
        match word:
            case {"taken": dict(value)}:
                record("snapshot.taken", **described(codec.decode(Snapshot, value)))
            case {"removed": list(ids)}:
                record("snapshot.removed", ids=ids, why="retention")
            case {"recovered": str(target)}:
                record("snapshot.restored", id=target, why="a restore was cut off")
            case {"failed": str(text), "kind": str(kind)}:
                _log.warning("no %s snapshot: %s", kind, text)
                record("snapshot.failed", kind=kind, error=text)


def pre_run(
    store: Store,
    config: SnapshotConfig,
    run: str,
    progress: Progress,
    given_up: threading.Event,
    living: bool,  # another run uses the workspace
) -> Snapshot:
    """Blocks. Raises SnapshotError."""

    def tell(entries: int, size: int) -> None:
        if given_up.is_set():
            raise MoatError("given up")
        if entries and entries % 1024 == 0:
            progress(f"keeping a snapshot of the workspace: {entries:,} files, {size >> 20} MiB read")

    with store.exclusive(lambda: progress("waiting for another snapshot of this workspace")):
        snapshot = take(store, Wish.of(config, Kind.PRE_RUN, run), tell=tell, living=living)
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
