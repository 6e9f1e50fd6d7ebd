"""The control socket's side of `moat exec`: one connection, one further command in the sandbox."""

from __future__ import annotations

import asyncio
import contextlib

import anyio
from anyio.abc import ObjectReceiveStream, ObjectSendStream

from moat.errors import MoatError
from moat.runtime import control
from moat.runtime.control import BrokenFrameError, Frame
from moat.runtime.sandbox import Execution
from moat.runtime.size import Size

_INPUTS = 16  # frames of input that wait for the command


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, execution: Execution) -> None:
    """Until the command has ended, or the connection: the command does not outlive that."""
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_obey, reader, execution, tasks.cancel_scope)
            await _show(writer, execution)
            status = await execution.wait()
            writer.write(control.pack_json(Frame.DONE, {"exit_code": status}))
            await writer.drain()
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await execution.close()


async def _show(writer: asyncio.StreamWriter, execution: Execution) -> None:
    """A reader that is slow holds the command up, and nothing else."""
    while (output := await execution.read()) is not None:
        kind = Frame.STDOUT if output.stream == "stdout" else Frame.STDERR
        writer.write(control.pack(kind, output.data))
        await writer.drain()


async def _obey(reader: asyncio.StreamReader, execution: Execution, all_of_it: anyio.CancelScope) -> None:
    """Input waits for the command in a task of its own, so that signals get past it."""
    send, receive = anyio.create_memory_object_stream[bytes](_INPUTS)
    try:
        with send, receive:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_feed, receive, execution)
                with contextlib.suppress(EOFError, ConnectionError):
                    while True:
                        await _order(*await control.read_frame(reader), execution, send)
                tasks.cancel_scope.cancel()
    finally:
        all_of_it.cancel()


async def _order(kind: Frame, payload: bytes, execution: Execution, send: ObjectSendStream[bytes]) -> None:
    if kind is Frame.INPUT:
        await send.send(payload)
    elif kind is Frame.CLOSE_STDIN:
        await send.send(b"")
    elif kind is Frame.RESIZE:
        await execution.resize(Size(*control.unpack_size(payload)))
    elif kind is Frame.SIGNAL and len(payload) == 1:
        await execution.signal(payload[0])
    else:
        raise BrokenFrameError(kind.name)


async def _feed(receive: ObjectReceiveStream[bytes], execution: Execution) -> None:
    async for data in receive:
        with contextlib.suppress(MoatError):  # it has ended
            await (execution.write(data) if data else execution.close_stdin())
