"""The user's terminal while a run is attached: what the program prints goes through unaltered.

Besides, this knows which state the program has left the terminal in: to bring it back to normal when the
user leaves, to clear it when the run sends a whole new screen, and to lend it to Moat's own menu. The menu
is drawn on the alternate screen where the program uses the main one, so that the terminal itself brings
everything back. Over a program that has the alternate screen it is drawn in place, and the run is asked for
the screen afterwards. What the program prints meanwhile waits here.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import select
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moat.cli.askbar import AskBar
from moat.cli.output import dumb
from moat.runtime.screen import Modes
from moat.runtime.size import Size

_SAVE_TITLE, _RESTORE_TITLE = b"\x1b[22;0t", b"\x1b[23;0t"  # on the terminal's own stack
_HELD = 1 << 20  # bytes that wait while the menu is open; with more, the run is asked for the screen
_PAUSE = 0.2  # seconds to wait for the rest of a sequence that the program has begun
_SHOWN = 20.0  # seconds that a word of Moat's own is on the screen
_NOTES = 20  # of them that are remembered


class Display:
    def __init__(
        self,
        *,
        terminal: bool,
        ask_for_screen: Callable[[], None],
        repaint: Callable[[], None],
        chord: str,
    ) -> None:
        """terminal: stdout is one, and the program draws on it; else bytes are passed on and that is all.

        ask_for_screen: has the run send all of it. repaint: has the program draw what was covered.
        chord: the key before an answer to what the run asks; empty: nothing is answered here.
        """
        self.bar = AskBar(chord=chord)
        self.terminal = terminal
        self.plain = not terminal or dumb()
        self.notes: dict[str, dt.datetime] = {}
        """What was told in the last row, where it may have been missed, and when."""
        self._ask_for_screen = ask_for_screen
        self._repaint = repaint
        self._notice: threading.Timer | None = None  # takes it away
        self._lock = threading.RLock()  # the menu is drawn by the thread that reads keys
        self._modes = Modes()
        self._covered = False
        self._box = Size(0, 0)  # what is covered: a smaller page than the one before must hide all of that
        self._held = bytearray()
        self._missed = False  # what is held is not all, or not what the screen shows: the run will send it
        self._within_a_line = False  # where the program has left the cursor, as far as its last byte tells
        self.closed = False

    def open(self) -> None:
        """Before the first output. The title is saved: the program may set another."""
        if not self.plain:
            write(1, _SAVE_TITLE)

    def output(self, data: bytes) -> None:
        with self._lock:
            if self._missed:
                return
            if self._covered:
                self._held += data
                if len(self._held) > _HELD:
                    self._miss()
                return
            self._within_a_line = not data.endswith(b"\n")
            write(1, self.bar.feed(data, size(), self._modes) if self.terminal else data)

    def ask(self, waiting: Sequence[Mapping[str, Any]]) -> bool:
        """Show what waits for the user; False where there is no screen to draw on."""
        if self.plain:
            return False
        with self._lock:
            drawn = self.bar.show(waiting, size(), self._modes, os.environ)
            if self._covered:
                self.bar.wiped()  # the menu shows it, too
            else:
                write(1, drawn)
        return True

    def screen(self, data: bytes) -> None:
        """Show `data` on an empty screen. What the user's shell has printed scrolls up and is kept."""
        with self._lock:
            self._missed = False
            if self._covered:
                self._miss()  # shown when the menu is gone
            elif self.plain:
                self.output(data)
            else:
                write(1, self._anew(data))  # at once: no terminal paints what is in between

    def _anew(self, data: bytes) -> bytes:
        before = self._modes.leave()
        self._modes = Modes()
        self.bar.wiped()
        data = self.bar.feed(data, size(), self._modes)
        if self._modes.alternate:
            return before + data
        return before + b"\r\n" * size().rows + b"\x1b[H" + data

    def say(self, text: str) -> None:
        """A line of Moat's own. Where a program draws, it is in the last row for a while, and in `notes`."""
        with self._lock:
            if self.plain:
                write(2, f"\r\nmoat: {text}\r\n".encode())
                return
            self.notes[text] = dt.datetime.now().astimezone()
            if len(self.notes) > _NOTES:
                del self.notes[next(iter(self.notes))]
            if self._notice:
                self._notice.cancel()
            self._notice = threading.Timer(_SHOWN, self._unsay)
            self._notice.daemon = True
            self._notice.start()
            self._tell(text)

    def _unsay(self) -> None:
        with self._lock:
            if self.closed:
                return
            self._tell("")
        self._repaint()

    def _tell(self, text: str) -> None:
        drawn = self.bar.tell(text, size(), self._modes)
        if self._covered:
            self.bar.wiped()
        else:
            write(1, drawn)

    def close(self) -> None:
        """Bring the terminal back to the state that it was in."""
        with contextlib.suppress(OSError), self._lock:
            self.closed = True
            if self._notice:
                self._notice.cancel()
            if not self._covered:
                write(1, self.bar.hide(size()))
            if self._covered and not self._modes.alternate:
                write(1, b"\x1b[?1049l")
            self._modes.feed(bytes(self._held))
            write(1, self._held)
            if self.terminal:
                write(1, self._modes.leave())
            if not self.plain:
                write(1, _RESTORE_TITLE)

    def end_line(self) -> None:
        """After `close`: what is said next begins a line."""
        if self.terminal and self._within_a_line:
            write(1, b"\r\n")
        self._within_a_line = False

    def left(self) -> None:
        """After `close`: the program goes on, and what it has drawn below here is not the shell's."""
        self._within_a_line = False
        if self.terminal:
            write(1, b"\r\n" if self.plain else b"\r\n\x1b[J")

    # --- the menu --------------------------------------------------------------------------------

    def cover(self, lines: Sequence[str]) -> None:
        """Draw the menu, also again. Its first line is the title."""
        deadline = time.monotonic() + _PAUSE
        while not self._covered and not self._between_sequences() and time.monotonic() < deadline:
            time.sleep(0.005)
        with self._lock:
            if self.closed:
                return
            begin = blank = b""
            if not self._modes.alternate:
                begin, blank = b"\x1b[?1049h", b"\x1b[2J"
            area = size()
            if not self._covered:
                write(1, self.bar.hide(area) + begin)
                self._box = Size(0, 0)
            self._box = _room(lines, self._box)
            write(1, self._modes.pause() + blank + _box(lines, self._box, area))
            self._covered = True

    def uncover(self) -> None:
        """Bring back what the program shows."""
        with self._lock:
            if not self._covered or self.closed:
                return
            self._covered = False
            if self._modes.alternate:
                self._miss()
            else:
                write(1, b"\x1b[?1049l")
            write(1, self._modes.resume() + self.bar.feed(b"", size(), self._modes))
            held, self._held = bytes(self._held), bytearray()
            self.output(held)
            missed = self._missed
        if missed:
            self._ask_for_screen()

    def _miss(self) -> None:
        self._missed = True
        self._held.clear()

    def _between_sequences(self) -> bool:
        with self._lock:
            return self.bar.interruptible(self._modes)


def _room(lines: Sequence[str], least: Size) -> Size:
    """Of the block that has `lines` and is not smaller than `least`."""
    width = max(map(len, lines), default=0) + 2
    return Size(max(width, least.columns), max(len(lines), least.rows))


def _box(lines: Sequence[str], room: Size, area: Size) -> bytes:
    """The lines as a block in the middle, in reverse, its title bold."""
    width = min(area.columns, room.columns)
    filled = [*lines, *[""] * (room.rows - len(lines))]
    shown = [f" {line}"[:width].ljust(width) for line in filled[: area.rows]]
    top = (area.rows - len(shown)) // 2 + 1
    left = (area.columns - width) // 2 + 1
    out = [
        b"\x1b[%d;%dH\x1b[0;%d;7m%b" % (top + at, left, 1 if at == 0 else 0, line.encode(errors="replace"))
        for at, line in enumerate(shown)
    ]
    return b"".join([*out, b"\x1b[0m"])


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


def write(fd: int, data: bytes | bytearray) -> None:
    """All of `data`, also when somebody has made the descriptor non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])
