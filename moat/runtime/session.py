"""The traffic of one run: output to the log, a ring and every viewer; input, size and signals back.

One task (`pump`) reads the sandbox. What it read goes to the log first, then to the viewers, and only
then is more read: a viewer that is behind holds the command up, as a full pipe would, for as long as
its patience lasts. The viewer that started a plain run has patience without end (`moat run -- … | less`);
any other misses what it is too slow for, so that nobody who merely watches can block an agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import anyio

from moat.errors import MoatError
from moat.runtime.output_log import OutputLog
from moat.runtime.questions import Asked
from moat.runtime.sandbox import Output, Sandbox
from moat.runtime.screen import Modes, drawing_only, full_screen
from moat.runtime.size import Size
from moat.runtime.unheard import Unheard

RING = 256 * 1024  # bytes of output that somebody who attaches later may see
_REDRAW_PAUSE = 0.03  # seconds between the two sizes: shorter, and a program sees one change only
_SUSPENDED = re.compile(rb"\x1a|\x1b\[122;5(?::1)?u|\x1b\[27;5;122~")  # Ctrl-Z, in each way terminals send it
_SHELL_PAUSE = 0.3  # seconds in which a shell in the sandbox has taken the terminal back from what it ran


class Viewer(Protocol):
    """Somebody who watches a run."""

    size: Size | None  # of their terminal; None: it does not count
    patience: float | None  # seconds that the run waits for them; None: for ever

    def offer(self, output: Output) -> None:
        """Hand over output; never blocks."""
        ...

    async def caught_up(self) -> None:
        """Returns when the viewer can take more. Raises ConnectionError when it is gone."""
        ...

    def show(self, screen: bytes) -> None:
        """Replace what their terminal shows."""
        ...

    def notice(self, text: str) -> None:
        """Tell the person something about the run."""
        ...

    def ask(self, waiting: Sequence[Asked]) -> None:
        """Show the questions that wait now; none: take away what was shown."""
        ...

    def skip(self) -> None:
        """It does not keep up: what it has not taken yet is dropped."""
        ...


class Session:
    def __init__(
        self, sandbox: Sandbox, *, tty: Size | None, log: OutputLog, on_log_error: Callable[[str], None]
    ) -> None:
        self._sandbox = sandbox
        self._size = tty  # None: plain pipes
        self._log = log
        self._on_log_error = on_log_error
        self._viewers: list[Viewer] = []
        self._ring: deque[Output] = deque()
        self._ring_size = 0
        self._modes = Modes()
        self._waiting: Sequence[Asked] = ()
        self._unheard = Unheard()
        self._writing = asyncio.Lock()
        self._sizing = asyncio.Lock()  # the size that was asked for last must arrive last
        self.joined = asyncio.Event()  # the first viewer is there
        self.begun = asyncio.Event()  # the command was started: only now is there anybody to write to
        self._suspended = asyncio.Event()  # Ctrl-Z was typed
        self.drained = asyncio.Event()  # the last output has been handed over

    async def pump(self) -> None:
        """Hand out everything the command prints, until it ends."""
        try:
            while (output := await self._sandbox.read()) is not None:
                if self._log.write(output):
                    self._on_log_error(self._log.error)
                    self._tell_all(self._hole())
                self._remember(output)
                await self._hand_out(output)
        finally:
            self.drained.set()

    def tell(self, text: str) -> None:
        """A notice for everybody who watches; if nobody does, for the next one."""
        if self._viewers:
            self._tell_all(text)
        else:
            self._unheard.keep(text)

    def _tell_all(self, text: str) -> None:
        for viewer in self._viewers:
            viewer.notice(text)

    def _hole(self) -> str:
        return f"the log of this run has a hole: {self._log.error}"

    async def ask(self, waiting: Sequence[Asked]) -> None:
        """Show everybody who watches what waits for the user; with the last question gone, repaint."""
        was, self._waiting = self._waiting, waiting
        for viewer in self._viewers:
            viewer.ask(waiting)
        if was and not waiting and self._viewers:
            await self.redraw()

    def remind(self, viewer: Viewer) -> None:
        """Tell somebody who may have missed it what waits for the user."""
        if self._waiting:
            viewer.ask(self._waiting)

    @property
    def viewers(self) -> Sequence[Viewer]:
        return tuple(self._viewers)

    def add(self, viewer: Viewer) -> None:
        """What the ring remembers comes first; from here on `viewer` sees everything."""
        if self._size is None:
            for output in self._ring:
                viewer.offer(output)
        elif self.begun.is_set():
            viewer.show(self._screen())
        if self._log.error:
            viewer.notice(self._hole())
        for text in self._unheard.take():
            viewer.notice(text)
        self.remind(viewer)
        self._viewers.append(viewer)
        self.joined.set()

    async def remove(self, viewer: Viewer) -> None:
        self._drop(viewer)
        async with self._sizing:
            await self._apply_size()

    def _drop(self, viewer: Viewer) -> None:
        if viewer in self._viewers:
            self._viewers.remove(viewer)

    async def resize(self, viewer: Viewer, size: Size) -> None:
        """`viewer` has this size now; the smallest of all terminals wins."""
        viewer.size = size
        async with self._sizing:
            await self._apply_size()

    async def resync(self, viewer: Viewer) -> None:
        """Bring a terminal that is not up to date to what the program shows.

        The program is bothered only when the ring does not remember all of it.
        """
        if self._size is None:
            return
        viewer.show(self._screen())
        viewer.ask(self._waiting)
        if not self._modes.alternate or full_screen(self._past()) is None:
            await self.redraw()

    async def redraw(self) -> None:
        """Make the program paint everything: a new size does, and the width wobbles when it is the same."""
        async with self._sizing:
            if self._size is None or await self._apply_size():
                return
            size = self._size
            try:
                await self._sandbox.resize(Size(max(1, size.columns - 1), size.rows))
                await anyio.sleep(_REDRAW_PAUSE)
            finally:
                with anyio.CancelScope(shield=True):  # whoever asked for it may leave meanwhile
                    await self._sandbox.resize(size)

    async def write(self, data: bytes) -> None:
        await self.begun.wait()
        async with self._writing:  # two people may type; their pieces must not be torn apart
            await self._sandbox.write(data)
        if self._size is not None and _SUSPENDED.search(data):
            self._suspended.set()

    async def continue_suspended(self) -> None:
        """Wake what Ctrl-Z has put to sleep, until cancelled: no shell around the command has an `fg` for it.

        A program that suspends itself waits for SIGCONT, and the kernel does not even stop it, since
        nobody could go on with it. What a shell in the sandbox has suspended is not in the foreground any
        more.
        """
        while True:
            await self._suspended.wait()
            await anyio.sleep(_SHELL_PAUSE)
            self._suspended.clear()
            with contextlib.suppress(MoatError, OSError):  # it has ended, or its engine does not answer
                await self._sandbox.signal(signal.SIGCONT)

    async def close_stdin(self) -> None:
        await self.begun.wait()
        async with self._writing:
            await self._sandbox.close_stdin()

    def _smallest(self) -> Size:
        assert self._size is not None
        sizes = [viewer.size for viewer in self._viewers if viewer.size]
        if not sizes:
            return self._size
        return Size(min(s.columns for s in sizes), min(s.rows for s in sizes))

    async def _apply_size(self) -> bool:
        """Whether the program's terminal got another size. One at a time (`_sizing`)."""
        if self._size is None or (size := self._smallest()) == self._size:
            return False
        self._size = size
        if self._modes.alternate:
            self._forget()  # it was drawn for another size, and will be drawn anew
        await self._sandbox.resize(size)
        return True

    def _remember(self, output: Output) -> None:
        if self._size is not None:
            self._modes.feed(output.data)
        self._ring.append(output)
        self._ring_size += len(output.data)
        while self._ring_size > RING and len(self._ring) > 1:
            self._ring_size -= len(self._ring.popleft().data)

    def _forget(self) -> None:
        self._ring.clear()
        self._ring_size = 0

    def _screen(self) -> bytes:
        """Brings a terminal that was reset to what the program shows, as far as the ring remembers it."""
        state = self._modes.enter()
        if self._modes.alternate:
            return state + (full_screen(self._past()) or b"")
        return drawing_only(self._past()) + state

    def _past(self) -> bytes:
        return b"".join(output.data for output in self._ring)

    async def _hand_out(self, output: Output) -> None:
        for viewer in self.viewers:
            viewer.offer(output)
        for viewer in self.viewers:
            try:
                with anyio.fail_after(viewer.patience):
                    await viewer.caught_up()
            except TimeoutError:
                viewer.skip()
            except ConnectionError:
                self._drop(viewer)  # whoever serves it calls `remove`: output does not wait for a new size
