"""The supervisor's side of the control socket: who is connected, and what each one may do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import anyio
from anyio.abc import TaskGroup

from moat.errors import MoatError, UsageError, one_error
from moat.runtime import control
from moat.runtime.control import BrokenFrameError, Frame
from moat.runtime.questions import Answer, told
from moat.runtime.records import RunRecord
from moat.runtime.sandbox import TERM, Execution
from moat.runtime.session import Session
from moat.runtime.size import Size
from moat.runtime.viewer import PATIENCE, SocketViewer

if TYPE_CHECKING:
    from moat.runtime.asking import Asking

_HELLO_TIMEOUT = 10.0
_BACKLOG = 512  # who comes while the loop is busy waits here; one more is refused at once (EAGAIN)
_LINGER = 5.0  # seconds to take the rest after the run has ended
_SIZE_PAUSE = 0.03  # seconds between two sizes; each costs an engine some milliseconds
_log = logging.getLogger(__name__)


class Controlled(Protocol):
    """What the socket needs of a run."""

    @property
    def record(self) -> RunRecord: ...

    @property
    def asking(self) -> Asking | None:
        """Its questions to the user; None: it has none."""
        ...

    async def session(self) -> Session:
        """Waits until there is a sandbox to talk to."""
        ...

    def ask_to_stop(self, grace: float, *, by: str) -> None: ...

    async def signal(self, number: int) -> None: ...

    async def execute(self, argv: tuple[str, ...], *, tty: Size | None, stdin: bool, term: str) -> Execution:
        """Start a further command in the sandbox. Raises MoatError."""
        ...

    async def pause(self) -> None:
        """Hold the sandbox still; each call wants its `resume`. Raises MoatError."""
        ...

    async def resume(self) -> None: ...

    def note(self, event: str, data: dict[str, Any]) -> None:
        """Write an event to the journal that another process of this user tells of."""
        ...


class ControlServer:
    """Answers on the run's control socket until it is cancelled."""

    def __init__(self, run: Controlled, path: Path) -> None:
        self._run = run
        self._waiting: dict[asyncio.StreamWriter, SocketViewer | None] = {}  # for EXIT
        self._inputs: set[asyncio.StreamWriter] = set()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))
        os.chmod(path, 0o600)
        self._socket.listen(_BACKLOG)

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        with self._socket:
            async with anyio.create_task_group() as clients:
                while True:
                    try:
                        connection, _ = await loop.sock_accept(self._socket)
                    except OSError:  # out of file descriptors: the backlog keeps the peer waiting
                        await anyio.sleep(0.1)
                    else:
                        await self._accept(connection, clients)

    async def farewell(self) -> None:
        """Tell everybody who waits how the run ended, and give them time to take it all."""
        async with anyio.create_task_group() as tasks:
            for writer, viewer in self._waiting.items():
                tasks.start_soon(self._part, writer, viewer)

    async def _part(self, writer: asyncio.StreamWriter, viewer: SocketViewer | None) -> None:
        endless = viewer is not None and viewer.patience is None
        with anyio.move_on_after(None if endless else _LINGER):
            if viewer:
                await viewer.finish()
            await _say(writer, self._last_words())

    def _last_words(self) -> bytes:
        return control.pack_json(Frame.EXIT, self._run.record.to_json())

    async def _accept(self, connection: socket.socket, clients: TaskGroup) -> None:
        connection.setblocking(False)
        if _peer_uid(connection) not in {0, os.getuid()}:
            connection.close()
            return
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        clients.start_soon(self._client, reader, writer)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(reader, writer)
        except (EOFError, ConnectionError, TimeoutError, BrokenFrameError) as error:
            _log.debug("control connection ended: %r", error)  # the peer left or talks nonsense
        except Exception:  # one client must not take the run down with it
            _log.exception("control connection failed")
        finally:
            self._waiting.pop(writer, None)
            self._inputs.discard(writer)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with anyio.fail_after(_HELLO_TIMEOUT):
            kind, payload = await control.read_frame(reader)
        if kind is not Frame.HELLO:
            raise BrokenFrameError(kind.name)
        hello = control.unpack_json(payload)
        writer.write(control.pack_json(Frame.WELCOME, self._run.record.to_json()))
        if self._run.record.state.ended:
            with anyio.move_on_after(_LINGER):
                await _say(writer, self._last_words())
            return
        match hello.get("role"):
            case "view":
                await self._view(reader, writer, hello)
            case "input":
                self._inputs.add(writer)
                await self._input(reader)
            case "control":
                self._waiting[writer] = None
                await self._control(reader, writer)

    async def _view(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hello: dict[str, Any]
    ) -> None:
        session = await self._run.session()
        # Whoever started a plain run is its stdout: it may be as slow as it likes.
        patience = None if hello.get("lead") and not self._run.record.tty else PATIENCE
        viewer = SocketViewer(
            writer,
            size=_size(hello.get("size")),
            patience=patience,
            read_only=bool(hello.get("read_only")),
        )
        if hello.get("steal"):
            await self._clear_out(session)
        self._waiting[writer] = viewer
        begun = self._run.record.started_at is not None
        session.add(viewer)
        try:
            with one_error():
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._deliver, viewer, session)
                    if begun:
                        await session.redraw()
                    tasks.start_soon(fit, viewer, session)
                    await self._orders(reader, viewer, session)
        finally:
            with anyio.CancelScope(shield=True):
                await session.remove(viewer)

    async def _clear_out(self, session: Session) -> None:
        """Everybody who watches or types now is sent away."""
        for writer, viewer in tuple(self._waiting.items()):
            if viewer:
                del self._waiting[writer]
                viewer.leave("another terminal took this run over")
                await session.remove(viewer)
        for writer in self._inputs:
            writer.transport.abort()

    async def _deliver(self, viewer: SocketViewer, session: Session) -> None:
        with contextlib.suppress(ConnectionError):  # whoever reads their orders sees it as well
            while True:
                missed = await viewer.deliver()
                if self._run.record.tty:
                    await session.resync(viewer)
                else:
                    name = self._run.record.name
                    session.remind(viewer)
                    viewer.notice(f"{missed:,} bytes came too fast to be shown here: `moat logs {name}`")

    async def _control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """PAUSE holds until the connection ends, however it does: nobody is left frozen."""
        paused = False
        try:
            while True:
                kind, payload = await control.read_frame(reader)
                if kind is Frame.PAUSE:
                    try:
                        if not paused:
                            await self._run.pause()
                    except MoatError as error:
                        writer.write(control.pack(Frame.NOTICE, str(error).encode()))
                    else:
                        paused = True
                        writer.write(control.pack(Frame.PAUSED))
                elif kind is Frame.NOTE:
                    self._note(control.unpack_json(payload))
                    writer.write(control.pack(Frame.NOTED))
                elif kind is Frame.EXECUTE:
                    await self._execute(reader, writer, control.unpack_json(payload))
                    return
                elif kind is Frame.QUESTIONS:
                    writer.write(control.pack_json(Frame.ASKED, self._questions()))
                elif kind is Frame.ANSWER:
                    try:
                        requests = self._answer(payload)
                    except UsageError as error:
                        writer.write(control.pack(Frame.NOTICE, str(error).encode()))
                    else:
                        writer.write(control.pack_json(Frame.ANSWERED, {"requests": requests}))
                else:
                    await self._order(kind, payload)
        finally:
            if paused:
                with anyio.CancelScope(shield=True):
                    await self._run.resume()

    async def _execute(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wanted: dict[str, Any]
    ) -> None:
        argv, size, stdin = wanted.get("argv"), _size(wanted.get("size")), bool(wanted.get("stdin"))
        if not isinstance(argv, list) or not argv or not all(isinstance(word, str) for word in argv):
            raise BrokenFrameError("no command")
        term = "dumb" if wanted.get("dumb") else TERM
        try:
            execution = await self._run.execute(tuple(argv), tty=size, stdin=stdin, term=term)
        except MoatError as error:
            writer.write(control.pack(Frame.NOTICE, str(error).encode()))
        else:
            from moat.runtime.executing import carry

            await carry(reader, writer, execution)

    def _note(self, value: dict[str, Any]) -> None:
        match value:
            case {"event": str(event), "data": dict(data)} if event.startswith("snapshot."):
                self._run.note(event, data)
            case _:
                raise BrokenFrameError("not an event of snapshots")

    def _questions(self) -> dict[str, Any]:
        asking = self._run.asking
        return told(asking.waiting, asking.missed) if asking else told(())

    def _answer(self, payload: bytes) -> int:
        """How many requests waited for the answer. Raises UsageError."""
        if self._run.asking is None:
            raise UsageError("this run asks nothing: its network.policy is not ask")
        return self._run.asking.answer(Answer.from_json(control.unpack_json(payload)))

    async def _order(self, kind: Frame, payload: bytes) -> None:
        if kind is Frame.SIGNAL and len(payload) == 1:
            await self._run.signal(payload[0])
        elif kind is Frame.STOP and len(payload) == 8:
            self._run.ask_to_stop(*struct.unpack(">d", payload), by="the control socket")
        else:
            raise BrokenFrameError(kind.name)

    async def _orders(self, reader: asyncio.StreamReader, viewer: SocketViewer, session: Session) -> None:
        while True:
            kind, payload = await control.read_frame(reader)
            if kind is Frame.RESIZE:
                viewer.resize(Size(*control.unpack_size(payload)))
            elif kind is Frame.REDRAW:
                await session.resync(viewer)
            elif kind is Frame.REPAINT:
                await session.redraw()
            elif viewer.read_only:
                raise BrokenFrameError(f"{kind.name} of a viewer that only watches")
            elif kind is Frame.ANSWER:
                with contextlib.suppress(UsageError):  # the question is gone, and with it the line on screen
                    self._answer(payload)
            else:
                await self._order(kind, payload)

    async def _input(self, reader: asyncio.StreamReader) -> None:
        session = await self._run.session()
        while True:
            kind, payload = await control.read_frame(reader)
            if kind is Frame.INPUT:
                await session.write(payload)
            elif kind is Frame.CLOSE_STDIN:
                await session.close_stdin()
            else:
                raise BrokenFrameError(kind.name)


async def fit(viewer: SocketViewer, session: Session) -> None:
    """The program's terminal follows this one's. A storm of sizes holds up no order and reaches no engine."""
    while True:
        if viewer.size:
            await session.resize(viewer, viewer.size)
            await anyio.sleep(_SIZE_PAUSE)
        await viewer.resized()


async def _say(writer: asyncio.StreamWriter, frame: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        writer.transport.set_write_buffer_limits(high=0)
        writer.write(frame)
        await writer.drain()  # with a limit of 0 this means: everything was taken


def _peer_uid(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", credentials)[1]
    return uid


def _size(value: object) -> Size | None:
    match value:
        case [int(columns), int(rows)] if 0 < columns < 65536 and 0 < rows < 65536:
            return Size(columns, rows)
    return None
