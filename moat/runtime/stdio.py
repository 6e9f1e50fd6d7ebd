"""A command's standard streams, seen from outside: a terminal of its own, or three plain pipes.

Reading is pulled and writing waits, so a command that prints faster than anybody reads, or does not read
its input, is held up by the kernel and not by a buffer of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import pty
import struct
import termios
from typing import Literal

from moat.runtime.sandbox import Output
from moat.runtime.size import Size

_CHUNK = 65536
_EOF_CHARACTER = 4  # ^D, until the program chooses another

Stream = Literal["stdout", "stderr"]


class OverStdio:
    """What a `sandbox.Sandbox` and a `sandbox.Execution` do with the streams of their command."""

    _stdio: Stdio

    async def read(self) -> Output | None:
        return await self._stdio.read()

    async def write(self, data: bytes) -> None:
        await self._stdio.write(data)

    async def close_stdin(self) -> None:
        await self._stdio.close_stdin()

    async def resize(self, size: Size) -> None:
        self._stdio.resize(size)


class Stdio:
    """Made by `open_terminal` or `open_pipes`. `child` are the command's 0, 1 and 2 until `started`."""

    def __init__(
        self, child: tuple[int, int, int], outputs: dict[int, Stream], stdin: int | None, *, terminal: bool
    ) -> None:
        self.child = child
        self._outputs = outputs
        self._stdin = stdin
        self._terminal = terminal
        self._turn = 0
        self._waiting: set[asyncio.Future[None]] = set()
        for fd in {*outputs, *([] if stdin is None else [stdin])}:
            os.set_blocking(fd, False)

    def started(self) -> None:
        """The child has its own copies; ours would keep the streams from ending."""
        for fd in set(self.child):
            os.close(fd)
        self.child = (-1, -1, -1)

    async def read(self) -> Output | None:
        """The next piece of output; None when all have ended. One reader only.

        Of what came at the same time stdout is first, and then the streams take turns.
        """
        while self._outputs:
            fds = list(self._outputs)
            for index in range(len(fds)):
                fd = fds[(self._turn + index) % len(fds)]
                data = self._read_now(fd)
                if data is None:
                    continue
                if data:
                    self._turn += 1
                    return Output(self._outputs[fd], data)
                self._end(fd)
                break
            else:
                await self._ready(*fds)
                self._turn = 0
        return None

    def read_available(self) -> bytes:
        """Whatever is there right now; for the last words of something that failed."""
        return b"".join(self._read_now(fd) or b"" for fd in self._outputs)

    async def write(self, data: bytes) -> None:
        """To stdin; dropped when the command has closed it or is gone, as a shell's pipe would."""
        view = memoryview(data)
        while view and self._stdin is not None:
            try:
                view = view[os.write(self._stdin, view) :]
            except BlockingIOError:
                await self._ready(write=self._stdin)
            except OSError as error:
                if error.errno not in {errno.EPIPE, errno.EIO}:
                    raise
                return

    async def close_stdin(self) -> None:
        """End of input. A terminal has none: the end-of-file character says it to who reads lines."""
        if self._stdin is None:
            return
        if not self._terminal:
            fd, self._stdin = self._stdin, None
            self._drop(fd)
        elif termios.tcgetattr(self._stdin)[3] & termios.ICANON:
            await self.write(bytes([_EOF_CHARACTER]))

    def resize(self, size: Size) -> None:
        if self._terminal and self._stdin is not None:
            _set_size(self._stdin, size)

    def foreground(self) -> int | None:
        """The terminal's foreground process group, in our pid namespace; None without one."""
        if not self._terminal or self._stdin is None:
            return None
        try:
            group = os.tcgetpgrp(self._stdin)
        except OSError:
            return None
        return group if group > 0 else None

    def close(self) -> None:
        """Close everything; a `read` or `write` that waits returns."""
        if self.child[0] >= 0:
            self.started()
        fds = {*self._outputs, *([] if self._stdin is None else [self._stdin])}
        self._outputs = {}
        self._stdin = None
        for fd in fds:
            self._drop(fd)

    def _read_now(self, fd: int) -> bytes | None:
        """Data, b"" at the end of the stream, None when there is nothing yet."""
        try:
            return os.read(fd, _CHUNK)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.EIO:  # a terminal that no process has open any more
                return b""
            raise

    def _end(self, fd: int) -> None:
        del self._outputs[fd]
        if fd == self._stdin:
            self._stdin = None
        self._drop(fd)

    def _drop(self, fd: int) -> None:
        """Close `fd` and wake whoever waits: what they waited for may be gone."""
        with contextlib.suppress(RuntimeError):  # no loop: nothing can be registered with it
            loop = asyncio.get_running_loop()
            loop.remove_reader(fd)
            loop.remove_writer(fd)
        os.close(fd)
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def _ready(self, *read: int, write: int | None = None) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not future.done():
                future.set_result(None)

        for fd in read:
            loop.add_reader(fd, wake)
        if write is not None:
            loop.add_writer(write, wake)
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)
            for fd in read:
                if fd in self._outputs:  # else closed, and the number may be somebody else's
                    loop.remove_reader(fd)
            if write is not None and write == self._stdin:
                loop.remove_writer(write)


def open_terminal(size: Size, owner: int) -> Stdio:
    """A fresh terminal of `size`, its slave owned by `owner` so that the command may reopen it."""
    master, slave = pty.openpty()
    _set_size(master, size)
    if owner != os.geteuid():
        os.fchown(slave, owner, -1)
    return Stdio((slave, slave, slave), {master: "stdout"}, master, terminal=True)


def open_pipes(*, stdin: bool) -> Stdio:
    """Standard output and error apart; stdin is a pipe or /dev/null. All or nothing. Raises OSError."""
    with contextlib.ExitStack() as undo:

        def kept(*fds: int) -> tuple[int, ...]:
            for fd in fds:
                undo.callback(os.close, fd)
            return fds

        if stdin:
            child_in, our_in = kept(*os.pipe())
        else:
            (child_in,), our_in = kept(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)), None
        our_out, child_out = kept(*os.pipe())
        our_err, child_err = kept(*os.pipe())
        undo.pop_all()
    return Stdio(
        (child_in, child_out, child_err), {our_out: "stdout", our_err: "stderr"}, our_in, terminal=False
    )


def _set_size(fd: int, size: Size) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.columns, 0, 0))
