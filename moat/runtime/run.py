"""One run, in the caller's event loop: everything it owns, from the lock on its record to the proxy.

    run = Run(request, home)
    async with hosted(run, handoff, progress):
        await run.ended()

A supervisor is a thin process around this; a program may host it itself (`local_run`). Whatever happens
inside, on the way out the sandbox is destroyed first, the proxy is closed after it, and the record says what
became of the run. Leaving the block ends the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import TaskGroup

from moat.arguments import check, check_signal
from moat.errors import StartError, one_error
from moat.paths import Home, private_dir, runtime_dir
from moat.runtime import mounts, records
from moat.runtime.assembly import Assembly
from moat.runtime.gateway import Gateway
from moat.runtime.new_run import checked, first_record, tell_created
from moat.runtime.outcome import NEVER_BEGAN
from moat.runtime.output_log import OutputLog
from moat.runtime.papers import Papers, own
from moat.runtime.parts import Part, RunContext, Start
from moat.runtime.pausing import Pausing
from moat.runtime.records import RunRecord, State
from moat.runtime.releasing import Resources
from moat.runtime.request import RunRequest
from moat.runtime.sandbox import TERM, Execution, Progress, Sandbox
from moat.runtime.session import Session
from moat.runtime.size import Size
from moat.runtime.stopping import GRACE, Stopping
from moat.runtime.tasks import failure_of, first_of, once, outlast
from moat.runtime.viewers import ControlServer
from moat.runtime.words import check_argv, words

if TYPE_CHECKING:
    from moat.proxy.decider import Decider
    from moat.runtime.asking import Asking
    from moat.runtime.local import LocalViewer
    from moat.vault import Vault

_HOLD = 10.0  # seconds to wait for the first viewer
_LOOK = 2.0  # seconds between two looks at the run's own directory


def _vault(home: Home, handoff: bytes) -> Vault:
    from moat.vault import open_vault

    return open_vault(home, handoff=handoff or None)


@contextlib.asynccontextmanager
async def hosted(run: Run, handoff: bytes, progress: Progress) -> AsyncIterator[None]:
    """Bring `run` to life; end it, release everything and record the end on the way out."""
    with run.ownership, one_error():
        async with anyio.create_task_group() as tasks:
            try:
                await run.begin(tasks, handoff, progress)
                yield
                await run.stop()
            except BaseException as error:
                run.outcome.blame(error)
                raise
            finally:
                await run.finish()
                tasks.cancel_scope.cancel()


class Run:
    """A run that this process owns: its life, and what its control socket asks of it."""

    def __init__(
        self,
        request: RunRequest,
        home: Home,
        *,
        viewer: LocalViewer | None = None,
        decider: Decider | None = None,
    ) -> None:
        """Raises ConfigError, GrantError, StartError, UsageError; then nothing is left of it."""
        run_id = records.new_id()
        self._request = checked(request, home)
        self._home = home
        self._directory = runtime_dir() / run_id  # made once the record names it
        record = first_record(self._request, run_id, self._directory)
        self.ownership = own(home, run_id)
        shown = [mount.source for mount in self._request.mounts if not mount.read_only]
        self._papers = Papers(home, self.ownership, record, [self._request.workspace, *shown])
        self.outcome, self.journal = self._papers.outcome, self._papers.journal
        self.asking: Asking | None = None
        self._assembly: Assembly | None = None
        self._viewer = viewer
        self._decider = decider
        self._server: ControlServer | None = None
        self._sandbox: Sandbox | None = None
        self._session: Session | None = None
        self._session_made = anyio.Event()
        self._preparing = anyio.CancelScope()
        self._stopping = Stopping()
        self._pausing = Pausing(self._running)
        self._started = anyio.Event()
        self._ended = anyio.Event()
        self._finishing: asyncio.Task[None] | None = None
        self._sealing = False
        self._resources = Resources(self.journal)

    @property
    def record(self) -> RunRecord:
        """What is known of the run at this moment."""
        return self.outcome.record

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        return self.record.name

    async def started(self) -> None:
        """Returns when the command has started, or will never."""
        await self._started.wait()

    async def ended(self) -> None:
        """Returns when the run is over and its end is recorded."""
        await self._ended.wait()

    async def signal(self, number: int) -> None:
        """Send a signal to the command. Nothing happens when it does not run."""
        check_signal(number)
        if sandbox := self._running():
            await sandbox.signal(number)

    async def execute(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        tty: Size | None = None,
        stdin: bool = False,
        term: str = TERM,
    ) -> Execution:
        """Start a further command beside the run's own; the caller closes it.

        term: what a command with a terminal finds as TERM. Raises StartError, UsageError.
        """
        command = words(argv)
        check_argv((*command, term))
        check("tty", tty, Size | None)
        check("stdin", stdin, bool)
        sandbox = self._running()
        if sandbox is None:
            raise StartError(f"{self.name} is {self.record.state}", hint="`moat list` shows the runs")
        self.journal.record("run.executed", program=command[0])
        return await sandbox.execute(command, tty=tty, stdin=stdin, term=term)

    async def stop(self, grace: float = GRACE) -> int | None:
        """SIGTERM, then SIGKILL after `grace` seconds. Returns the exit status; None: it never ran."""
        check("grace", grace, float)
        if not self._ended.is_set():
            self.ask_to_stop(grace)
        if self._viewer:
            self._viewer.let_go()
        await self._ended.wait()
        return self.record.exit_code

    async def pause(self) -> None:
        """Hold every process of the sandbox still; each call wants its `resume`. Raises MoatError."""
        await self._pausing.pause()

    async def resume(self) -> None:
        """Let the sandbox go on, when nobody else wants it held."""
        await self._pausing.resume(self._sandbox, self._parts)

    def _running(self) -> Sandbox | None:
        """The sandbox, while its command runs."""
        return self._sandbox if self.record.state is State.RUNNING else None

    @property
    def _gateway(self) -> Gateway | None:
        return self._assembly.gateway if self._assembly else None

    @property
    def _parts(self) -> list[Part]:
        return self._assembly.parts if self._assembly else []

    # --- for the control socket ------------------------------------------------------------------

    def note(self, event: str, data: dict[str, Any]) -> None:
        """Journal what another process of this user did to the run's workspace."""
        if not self.record.state.ended:
            self.journal.record(event, **data)

    async def session(self) -> Session:
        """The session, as soon as there is one."""
        await self._session_made.wait()
        assert self._session is not None
        return self._session

    def ask_to_stop(self, grace: float = GRACE, *, by: str = "the program that hosts the run") -> None:
        """Begin to stop; returns at once. Before the command has started nothing of it will run.

        by: who wants it, for the journal.
        """
        self.journal.record("run.stop_asked", by=by)
        self._stopping.ask(grace)
        if self._session is None:
            self._preparing.cancel()

    # --- life ------------------------------------------------------------------------------------

    async def begin(self, tasks: TaskGroup, handoff: bytes, progress: Progress) -> None:
        """Prepare everything and let a task start the command."""

        def start(what: str, task: Callable[[], Awaitable[Any]]) -> None:
            tasks.start_soon(self._watch_over, what, task)

        self.outcome.update(state=State.STARTING)
        private_dir(self._directory)
        self._server = ControlServer(self, self._directory / "control.sock")
        start("control socket", self._server.serve)
        log = OutputLog(self._home.run(self.id), limit=self._papers.user.output.max_size)
        self._resources.add("log", log.aclose)
        tell_created(self.journal, self._request)
        with self._preparing:
            self._sandbox = await self._assemble(handoff, progress, start).make()
        if self._sandbox is None:
            raise StartError(NEVER_BEGAN)
        self._session = Session(
            self._sandbox,
            tty=self._request.tty,
            log=log,
            on_log_error=lambda error: self.outcome.update(log_error=error),
        )
        if self._viewer:
            self._session.add(self._viewer)
            self._viewer.size = self._request.tty
        self._session_made.set()
        start("command", self._command)
        start("directory", self._end_when_forgotten)

    def _assemble(self, handoff: bytes, progress: Progress, start: Start) -> Assembly:
        request = self._request
        if request.network.policy == "ask" and self._decider is None:
            from moat.runtime.asking import Asking
            from moat.runtime.standing import Standing

            self.asking = Asking(self.name, Standing(self._home), self.journal)
            start("questions", self.asking.tend)
            start("prompts", self._show_questions)
        context = RunContext(
            id=self.id,
            name=self.name,
            request=request,
            runtime=self.record.runtime,
            home=self._home,
            directory=self._directory,
            vault=_vault(self._home, handoff) if request.grants else None,
            journal=self.journal,
            start=start,
            progress=progress,
            update=self.outcome.update,
            tell=self._tell,
        )
        decider = self.asking.decide if self.asking else self._decider
        self._assembly = Assembly(
            context, self._papers.user, self._resources, decider, patient=self.asking is not None
        )
        return self._assembly

    def _tell(self, text: str) -> None:
        if self._session is not None:
            self._session.tell(text)

    async def _command(self) -> None:
        assert self._sandbox is not None
        assert self._session is not None
        assert self._assembly is not None
        if self._request.hold:
            await first_of(self._session.joined.wait, self._stopping.asked.wait, seconds=_HOLD)
        if not self._stopping.asked.is_set():
            await self._sandbox.start()
            self._session.begun.set()
            self.outcome.update(state=State.RUNNING, started_at=time.time())
            self.journal.record("run.started")
            self._started.set()
            await self._assembly.started()
            with once(), one_error():
                code = await self._carry_out(self._sandbox, self._session)
            self.outcome.update(state=State.STOPPING, exit_code=code)
            self.journal.record("run.command_ended", exit_code=code)
            for part in self._parts:
                await part.ended()
        await self.finish()

    async def _carry_out(self, sandbox: Sandbox, session: Session) -> int:
        """Until the command has ended and its output was handed on; its status."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.pump)
            tasks.start_soon(session.continue_suspended)
            tasks.start_soon(self._obey_stop, sandbox)
            code = await sandbox.wait()
            await first_of(session.drained.wait, self._stopping.gave_up)
            tasks.cancel_scope.cancel()
        return code

    async def _show_questions(self) -> None:
        """Keep everybody who watches, and the record, up to date about what waits for the user."""
        assert self.asking is not None
        session = await self.session()
        async for waiting in self.asking.changes():
            asks = tuple(question.name for question in waiting)
            if asks != self.record.asks:
                self.outcome.update(asks=asks)
            await session.ask(waiting)

    async def _end_when_forgotten(self) -> None:
        """Whoever deletes MOAT_HOME can no longer list, stop or read this run: it must not live on unseen."""
        while (self._home.run(self.id) / "lock").exists():
            await anyio.sleep(_LOOK)
        self.ask_to_stop(by="the run's record was deleted")

    async def _obey_stop(self, sandbox: Sandbox) -> None:
        await self._stopping.asked.wait()
        self.outcome.update(state=State.STOPPING)
        await self._stopping.end(sandbox, terminal=self._request.tty is not None)

    async def _watch_over(self, what: str, task: Callable[[], Awaitable[Any]]) -> None:
        """A part that breaks ends the run, and the record says which one it was."""
        try:
            await task()
        except Exception as error:
            self.outcome.blame(error, what)
            raise

    async def finish(self) -> None:
        """Release everything, newest first, and record the end. Once; cancelling does not stop it.

        In a task of its own: only Ctrl-C, or the end of the loop, can hit that. Then another one goes on.
        """
        cancelled = None
        while not self._ended.is_set():
            if self._finishing is None or self._finishing.done():
                self._finishing = asyncio.get_running_loop().create_task(self._finish())
            try:
                await outlast(self._finishing)
            except asyncio.CancelledError as error:
                cancelled = error
            if isinstance(failure := failure_of(self._finishing), Exception):
                raise failure
        if cancelled is not None:
            raise cancelled

    async def _finish(self) -> None:
        if self._viewer:
            self._viewer.end()
        if self.record.state is not State.STOPPING:
            self.outcome.update(state=State.STOPPING)  # to release can take long: an engine may be away
        released = await self._resources.release()
        if self.asking:
            self.asking.close()
        gateway = self._gateway
        warned = gateway.warned if gateway else 0
        self.outcome.conclude(asked=self._stopping.asked.is_set(), warned=warned)
        if not self._sealing:
            self._sealing = True
            await self._papers.seal()
        if released:
            # Named by the record until it is gone: who is killed here leaves nothing that nobody knows of.
            with contextlib.suppress(OSError):  # it stays in the record, and others try again
                mounts.remove(self._directory)
                self.outcome.update(directory="")
        self._started.set()
        self._ended.set()
        if self._server:
            await self._server.farewell()
