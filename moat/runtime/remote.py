"""A run that another process owns, for a program: the control socket as an asynchronous object."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from typing import Any

from moat.arguments import Bytes, check, check_signal
from moat.errors import MoatError, RunNotFoundError, StartError, UsageError
from moat.paths import Home
from moat.proxy.events import ExchangeFinished
from moat.runtime import control, known, records
from moat.runtime.control import Decoder, Frame
from moat.runtime.gateway import read_exchanges
from moat.runtime.questions import Answer, Asked, Scope
from moat.runtime.records import RunRecord
from moat.runtime.sandbox import Output
from moat.runtime.size import Size
from moat.runtime.stopping import GRACE
from moat.runtime.tasks import asyncio_loop

_PIECE = 65536
_LAST_BREATH = 2.0  # seconds from the end of a connection to that of the process which had it
_LOOK = 0.25  # seconds between two looks at what a run asks


class RemoteRun:
    """The same verbs as `LocalRun`. Leaving the `attach` block detaches; the run goes on.

    What is sent to a run that has ended goes nowhere.
    """

    def __init__(self, home: Home, record: RunRecord, viewer: _Wire) -> None:
        self._home = home
        self._viewer = viewer
        self._input: _Wire | None = None
        self._left = ""  # why the run goes on without us
        self._over = False  # nothing comes any more
        self._reader: asyncio.Task[Any] | None = None  # who takes what comes
        self._free = asyncio.Event()
        self.record = record

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        return self.record.name

    async def output(self) -> AsyncIterator[Output]:
        """What the command prints from now on, after the last 256 KiB before. One reader.

        On a terminal, what was before is a redrawn screen. The run waits for nobody who watches: a reader
        that falls a megabyte behind misses what is printed meanwhile, which `moat logs` still has.
        """
        if self._read_elsewhere():
            raise UsageError("the output of this run is read by another task")
        self._reader = asyncio.current_task()
        try:
            async for output in self._frames():
                yield output
        finally:
            self._reader = None
            self._free.set()

    async def _frames(self) -> AsyncIterator[Output]:
        while not self._over and (frame := await self._viewer.receive()) is not None:
            kind, payload = frame
            if kind in {Frame.STDOUT, Frame.SCREEN}:
                yield Output("stdout", payload)
            elif kind is Frame.STDERR:
                yield Output("stderr", payload)
            elif kind is Frame.LEFT:
                self._left = payload.decode(errors="replace")
            elif kind is Frame.EXIT:
                self.record = RunRecord.from_json(control.unpack_json(payload))
                self._over = True
        if not self._over:
            await self._look()
            self._over = True

    def _read_elsewhere(self) -> bool:
        reader = self._reader
        return reader is not None and reader is not asyncio.current_task() and not reader.done()

    async def wait(self) -> int:
        """The command's exit status. Output that nobody reads is dropped.

        Raises StartError when the command never ran, or when the connection to the run was lost.
        """
        await self._end()
        if self.record.exit_code is None:
            raise StartError(self.record.error or self._left or "the connection to the run was lost")
        return self.record.exit_code

    async def write(self, data: bytes) -> None:
        """To the command's stdin or terminal; waits when it does not read."""
        check("data", data, Bytes)
        pieces = (data[start : start + _PIECE] for start in range(0, len(data), _PIECE))
        await self._send_in(*(control.pack(Frame.INPUT, piece) for piece in pieces))

    async def close_stdin(self) -> None:
        """End of file for the command's stdin. Nothing happens without one, and at a terminal."""
        await self._send_in(control.pack(Frame.CLOSE_STDIN))

    async def resize(self, size: Size) -> None:
        """Change this viewer's terminal size; the smallest of all viewers wins."""
        check("size", size, Size)
        await self._order(control.pack_size(size.columns, size.rows))

    async def signal(self, number: int) -> None:
        """Send a signal to the command. Nothing happens when it does not run."""
        check_signal(number)
        await self._order(control.pack(Frame.SIGNAL, bytes([number])))

    async def stop(self, grace: float = GRACE) -> int | None:
        """SIGTERM, then SIGKILL after `grace` seconds. Returns the exit status; None: it never ran.

        Raises StartError when the connection to the run was lost.
        """
        check("grace", grace, float)
        await self._order(control.pack(Frame.STOP, struct.pack(">d", grace)))
        await self._end()
        if not self.record.state.ended:
            raise StartError(self._left or "the connection to the run was lost")
        return self.record.exit_code

    async def questions(self) -> AsyncIterator[Asked]:
        """Each question of a run with `policy: ask`, when it comes up, until the run ends."""
        if self.record.state.ended:
            return
        wire = await _Wire.open(self.record.socket, control.hello("control"))
        shown: set[Asked] = set()
        with contextlib.closing(wire):
            while (found := await _reply(wire, control.pack(Frame.QUESTIONS), Frame.ASKED)) is not None:
                new = {Asked(**{**each, "requests": 0}) for each in found["waiting"]}
                for question in new - shown:
                    yield question
                shown = new
                await asyncio.sleep(_LOOK)

    async def answer(self, host: str, *, allow: bool, scope: Scope = "run", seconds: int = 0) -> int:
        """As `LocalRun.answer`. Raises MoatError when the run does not take it."""
        said = Answer.of_program(host, allow=allow, scope=scope, seconds=seconds)
        if self.record.state.ended:
            raise MoatError(f"{self.record.name} has ended")
        wire = await _Wire.open(self.record.socket, control.hello("control"))
        with contextlib.closing(wire):
            found = await _reply(wire, control.pack_json(Frame.ANSWER, said.to_json()), Frame.ANSWERED)
        if found is None:
            raise MoatError(f"{self.record.name} has ended")
        return int(found["requests"])

    def exchanges(self) -> list[ExchangeFinished]:
        """The requests so far, oldest first. No credential is in them."""
        return read_exchanges(self._home, self.id)

    async def _end(self) -> None:
        """Returns when the run has ended, or cannot be seen any more."""
        while not self._over:
            if self._read_elsewhere():
                self._free.clear()
                await self._free.wait()
            else:
                async for _ in self.output():
                    pass

    async def _order(self, frame: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # it has ended; `wait` says how
            await self._viewer.send(frame)

    async def _send_in(self, *frames: bytes) -> None:
        """To the command. Raises StartError when the run is there and does not take it."""
        if self.record.state.ended:
            return
        try:
            if self._input is None:
                self._input = await _Wire.open(self.record.socket, control.hello("input"))
            for frame in frames:
                await self._input.send(frame)
        except (ConnectionError, StartError) as error:
            await self._look()
            if self.record.exit_code is None:
                raise StartError(str(error)) from None

    async def _look(self) -> None:
        """What became of the run, when it does not say so itself: who is killed lets go of the lock last."""
        with contextlib.suppress(RunNotFoundError, TimeoutError):
            async with asyncio.timeout(_LAST_BREATH):
                while not self._left and not self.record.state.ended:
                    self.record = known.find(self._home, self.id)
                    await asyncio.sleep(_LOOK / 10)

    def close(self) -> None:
        self._viewer.close()
        if self._input:
            self._input.close()


class _Wire:
    """One control connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = Decoder()
        self._frames = self._decoder.feed(b"")

    @classmethod
    async def open(cls, path: str, hello: bytes) -> _Wire:
        """Connect, say hello and take the answer. Raises StartError when nobody answers."""
        wire = None
        try:
            wire = cls(*await asyncio.open_unix_connection(path))
            await wire.send(hello)
            answer = await wire.receive()
        except BaseException as error:  # cancelled too: who waits no longer leaves no connection behind
            if wire is not None:
                wire.close()
            if isinstance(error, OSError):
                raise _silent(error.strerror) from None
            raise
        if answer is None:
            wire.close()
            raise _silent("it hung up")
        return wire

    async def send(self, frame: bytes) -> None:
        self._writer.write(frame)
        await self._writer.drain()

    async def receive(self) -> tuple[Frame, bytes] | None:
        while True:
            for frame in self._frames:
                return frame
            try:
                data = await self._reader.read(_PIECE)
            except ConnectionError:
                return None
            if not data:
                return None
            self._frames = self._decoder.feed(data)

    def close(self) -> None:
        self._writer.close()


def _silent(reason: str | None) -> StartError:
    return StartError(f"the run does not answer on its control socket: {reason}")


async def _reply(wire: _Wire, order: bytes, wanted: Frame) -> dict[str, Any] | None:
    """The answer to an order; None when the run has ended. Raises MoatError when it is refused."""
    try:
        await wire.send(order)
        frame = await wire.receive()
    except ConnectionError:
        return None
    match frame:
        case (kind, data) if kind is wanted:
            return control.unpack_json(data)
        case (Frame.NOTICE, data):
            raise MoatError(data.decode(errors="replace"))
    return None


@contextlib.asynccontextmanager
async def attach(run: str, *, size: Size | None = None, home: Home | None = None) -> AsyncIterator[RemoteRun]:
    """Watch and steer a run that is alive, by id, id prefix or name.

    size: of the program's own terminal, when it shows the run on one. Raises RunNotFoundError, and
    MoatError when the run has ended.
    """
    check("run", run, str)
    check("size", size, Size | None)
    check("home", home, Home | None)
    asyncio_loop()
    place = home or Home.from_environment()
    record = records.pick(known.all_runs(place), run)
    if record.state.ended:
        raise MoatError(f"{record.name} has ended ({record.state})", hint=f"moat logs {record.id}")
    numbers = (size.columns, size.rows) if size else None
    viewer = await _Wire.open(record.socket, control.hello("view", size=numbers))
    with contextlib.closing(RemoteRun(place, record, viewer)) as remote:
        yield remote
