"""The user's terminal while a run is attached: what the program prints goes through unaltered.

Besides, this knows which state the program has left the terminal in, so that it can be brought back to
normal when the user leaves, and cleared when the run sends a whole new screen.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Mapping, Sequence
from typing import Any

from moat.cli.askbar import AskBar
from moat.runtime.sandbox import Size
from moat.runtime.screen import Modes

_SAVE_TITLE, _RESTORE_TITLE = b"\x1b[22;0t", b"\x1b[23;0t"  # on the terminal's own stack
_CLEAR = b"\x1b[0m\x1b[H\x1b[2J"


class Display:
    def __init__(self, *, terminal: bool, answers: bool = True) -> None:
        """terminal: stdout is one, and the program draws on it; else bytes are passed on and that is all.

        answers: its keys may answer what the run asks.
        """
        self.bar = AskBar(answers=answers)
        self.terminal = terminal
        self._plain = not terminal or os.environ.get("TERM", "dumb") in {"dumb", "unknown"}
        self._modes = Modes()
        self._drawn = False  # something of the program is on the screen

    def open(self) -> None:
        """Before the first output. The title is saved: the program may set another."""
        if not self._plain:
            write(1, _SAVE_TITLE)

    def output(self, data: bytes) -> None:
        self._drawn = True
        write(1, self.bar.feed(data, size(), self._modes) if self.terminal else data)

    def ask(self, waiting: Sequence[Mapping[str, Any]]) -> bool:
        """Show what waits for the user; False where there is no screen to draw on."""
        if not self._plain:
            write(1, self.bar.show(waiting, size(), self._modes, os.environ))
        return not self._plain

    def screen(self, data: bytes) -> None:
        """Show `data` on an empty screen. What the user's shell has printed scrolls up and is kept."""
        if self._plain:
            self.output(data)
            return
        before = self._modes.leave()
        self._modes = Modes()
        self.bar.wiped()
        data = self.bar.feed(data, size(), self._modes)
        if self._drawn:
            before += _CLEAR
        elif not self._modes.alternate:
            before += b"\r\n" * size().rows + b"\x1b[H"
        self._drawn = True
        write(1, before + data)  # at once: no terminal paints what is in between

    def close(self) -> None:
        """Bring the terminal back to the state that it was in."""
        with contextlib.suppress(OSError):
            if self.terminal:
                write(1, self._modes.leave())
            if not self._plain:
                write(1, _RESTORE_TITLE)


def size() -> Size:
    """Of the user's terminal; 80x24 when there is none."""
    for fd in (1, 0, 2):
        try:
            columns, rows = os.get_terminal_size(fd)  # not COLUMNS and LINES, which go stale
        except OSError:
            continue
        if columns and rows:
            return Size(columns, rows)
    return Size(80, 24)


def write(fd: int, data: bytes) -> None:
    """All of `data`, also when somebody has made the descriptor non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])
