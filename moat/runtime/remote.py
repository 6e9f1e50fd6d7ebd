"""A run that another process owns, for a program: the control socket as an asynchronous object."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from typing import Any

from moat.arguments import Bytes, check, check_signal
from moat.errors import MoatError, StartError
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
_LOOK = 0.25  # seconds between two looks at what a run asks


class RemoteRun:
    """The same verbs as `LocalRun`. Leaving the `attach` block detaches; the run goes on."""

    def __init__(self, home: Home, record: RunRecord, viewer: _Wire) -> None:
        self._home = home
        self._viewer = viewer
        self._input: _Wire | None = None
        self.record = record

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        return self.record.name

    async def output(self) -> AsyncIterator[Output]:
        """What the command prints from now on, after the last 256 KiB before. One reader."""
        while (frame := await self._viewer.receive()) is not None:
            kind, payload = frame
            if kind is Frame.STDOUT:
                yield Output("stdout", payload)
            elif kind is Frame.STDERR:
                yield Output("stderr", payload)
            elif kind is Frame.EXIT:
                self.record = RunRecord.from_json(control.unpack_json(payload))
                return

    async def wait(self) -> int:
        """The command's exit status. Output that nobody reads is dropped.

        Raises StartError when the command never ran, or when its supervisor died.
        """
        if not self.record.state.ended:
            async for _ in self.output():
                pass
        if self.record.exit_code is None:
            raise StartError(self.record.error or "the connection to the run was lost")
        return self.record.exit_code

    async def write(self, data: bytes) -> None:
        """To the command's stdin or terminal; waits when it does not read."""
        check("data", data, Bytes)
        wire = await self._inward()
        for start in range(0, len(data), _PIECE):
            await wire.send(control.pack(Frame.INPUT, data[start : start + _PIECE]))

    async def close_stdin(self) -> None:
        await (await self._inward()).send(control.pack(Frame.CLOSE_STDIN))

    async def resize(self, size: Size) -> None:
        """Change this viewer's terminal size; the smallest of all viewers wins."""
        check("size", size, Size)
        await self._viewer.send(control.pack_size(size.columns, size.rows))

    async def signal(self, number: int) -> None:
        """Send a signal to the command. Nothing happens when it does not run."""
        check_signal(number)
        await self._viewer.send(control.pack(Frame.SIGNAL, bytes([number])))

    async def stop(self, grace: float = GRACE) -> int | None:
        """SIGTERM, then SIGKILL after `grace` seconds. Returns the exit status; None: it never ran."""
        check("grace", grace, float)
        await self._viewer.send(control.pack(Frame.STOP, struct.pack(">d", grace)))
        async for _ in self.output():
            pass
        return self.record.exit_code

    async def questions(self) -> AsyncIterator[Asked]:
        """Each question of a run with `policy: ask`, when it comes up, until the run ends."""
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
        wire = await _Wire.open(self.record.socket, control.hello("control"))
        with contextlib.closing(wire):
            found = await _reply(wire, control.pack_json(Frame.ANSWER, said.to_json()), Frame.ANSWERED)
        if found is None:
            raise MoatError(f"{self.record.name} has ended")
        return int(found["requests"])

    def exchanges(self) -> list[ExchangeFinished]:
        """The requests so far, oldest first. No credential is in them."""
        return read_exchanges(self._home, self.id)

    async def _inward(self) -> _Wire:
        if self._input is None:
            self._input = await _Wire.open(self.record.socket, control.hello("input"))
        return self._input

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
