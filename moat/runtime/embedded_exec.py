"""A further command in an embedded sandbox that runs (`enter`), seen from the supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import marshal
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import moat
from moat.dataclass import dataclass
from moat.errors import StartError
from moat.runtime import syscalls
from moat.runtime.sandbox import WORKSPACE
from moat.runtime.size import Size
from moat.runtime.standby import bootstrap
from moat.runtime.stdio import OverStdio, Stdio, open_pipes, open_terminal
from moat.runtime.tasks import outlast


@dataclass(frozen=True, slots=True, kw_only=True)
class Belonging:
    """What a command in the sandbox has, whenever it starts."""

    uid: int
    gid: int
    environment: Mapping[str, str]
    cgroups: Mapping[str, Path]
    rlimits: Mapping[str, int]

    def at(self, term: str) -> Belonging:
        """The same at a terminal."""
        return replace(self, environment={**self.environment, "TERM": term})


def execute(
    sandbox: int, argv: tuple[str, ...], belonging: Belonging, *, tty: Size | None, stdin: bool
) -> EmbeddedExecution:
    """Start `argv` in the sandbox whose first process is `sandbox`. Raises StartError."""
    stdio = open_terminal(tty, belonging.uid) if tty else open_pipes(stdin=stdin)
    told, tell = os.pipe()
    plan = {
        "parent": os.getpid(),
        "sandbox": sandbox,
        "argv": list(argv),
        "environment": dict(belonging.environment),
        "uid": belonging.uid,
        "gid": belonging.gid,
        "cgroups": {name: str(path) for name, path in belonging.cgroups.items()},
        "rlimits": dict(belonging.rlimits),
        "directory": WORKSPACE,
        "terminal": tty is not None,
        "tell": tell,
        "bits": syscalls.refused_bits(),
    }
    memory = os.memfd_create("moat")
    try:
        os.write(memory, marshal.dumps(plan))
        os.lseek(memory, 0, os.SEEK_SET)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", bootstrap("enter"), str(memory), moat.__path__[0]],
            stdin=stdio.child[0],
            stdout=stdio.child[1],
            stderr=stdio.child[2],
            pass_fds=(memory, tell),
            env={},
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        stdio.close()
        os.close(told)
        raise StartError(f"the sandbox cannot be entered: {error.strerror}") from error
    finally:
        os.close(memory)
        os.close(tell)
    stdio.started()
    return EmbeddedExecution(process, stdio, told)


class EmbeddedExecution(OverStdio):
    """Implements `sandbox.Execution`."""

    def __init__(self, process: subprocess.Popen[bytes], stdio: Stdio, told: int) -> None:
        self._process = process
        self._stdio = stdio
        self._told: int | None = told  # a pipe with the number of the command's process
        self._command: int | None = None  # its pidfd
        self._listening: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._handle = os.pidfd_open(process.pid)
        asyncio.get_running_loop().add_reader(self._handle, self._reap)

    def _reap(self) -> None:
        status = self._process.wait()
        asyncio.get_running_loop().remove_reader(self._handle)
        os.close(self._handle)
        self._exit.set_result(status if status >= 0 else 128 - status)

    async def signal(self, number: int) -> None:
        group = self._stdio.foreground()
        with contextlib.suppress(ProcessLookupError):
            if group is not None:
                os.killpg(group, number)
            elif (command := await self._command_handle()) is not None:
                signal.pidfd_send_signal(command, number)

    async def _command_handle(self) -> int | None:
        """None: it has ended, or never began."""
        if self._listening is None:
            self._listening = asyncio.get_running_loop().create_task(self._listen())
        await asyncio.shield(self._listening)
        return self._command

    async def _listen(self) -> None:
        assert self._told is not None
        number = await asyncio.to_thread(os.read, self._told, 16)
        os.close(self._told)
        self._told = None
        with contextlib.suppress(ProcessLookupError):
            if number and not self._exit.done():
                self._command = os.pidfd_open(int(number))

    async def wait(self) -> int:
        return await asyncio.shield(self._exit)

    async def close(self) -> None:
        """Kill the command, if it still runs, and release everything, however often this is cancelled."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await outlast(self._closing)
        self._closing.result()

    async def _close(self) -> None:
        if not self._exit.done():
            await self.signal(signal.SIGKILL)
            self._process.kill()
            await self.wait()
        if self._listening is not None:
            await self._listening
        for fd in (self._told, self._command):
            if fd is not None:
                os.close(fd)
        self._told = self._command = None
        self._stdio.close()
