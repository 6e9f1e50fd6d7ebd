"""The line that asks, or tells: drawn into the last row of a terminal whose program owns the whole screen.

The program's bytes pass unchanged. The line is taken away before each of its pieces and drawn again behind
it, cursor and colours saved around it, and only where the program is between two sequences and has not
saved the cursor itself (terminals keep one). When the last question is gone, the run makes the program
repaint what the line has covered.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from moat.cli.output import safe
from moat.runtime.screen import Modes
from moat.runtime.size import Size

_SAVE, _RESTORE = b"\x1b7", b"\x1b8"
_BELL = b"\a"
_SETTLED = 0.5  # seconds that a question has been shown before a key can mean it
_KEYS = "ctrl-/ a allow, n deny"
_LEAST_ROWS, _LEAST_COLUMNS = 4, 30


class AskBar:
    """What to write to the terminal. Writes nothing itself, knows no clock but for `chosen`."""

    def __init__(self, *, chord: str = "ctrl-/") -> None:
        """chord: the key that comes before an answer; empty: this terminal only shows what waits."""
        self._keys = _KEYS.replace("ctrl-/", chord) if chord else "`moat approve` answers"
        self._waiting: Sequence[Mapping[str, Any]] = ()
        self._notice = ""  # shown while no question waits
        self._since = 0.0
        self._drawn = False
        self._seen = ""  # the question that was drawn last
        self.visible = False
        """Whether a question is on the screen. Where it is not, the program may have drawn one of its own."""
        self._half = False  # the last piece ended within a character

    def feed(self, data: bytes, size: Size, modes: Modes) -> bytes:
        """A piece of the program's output, as it goes to the terminal. Feeds the program's `modes`."""
        before = self._erase(size)
        modes.feed(data)
        self._half = _ends_within_a_character(data)
        return before + data + self._draw(size, modes)

    def hide(self, size: Size) -> bytes:
        """Takes the line away, until the next piece of output."""
        return self._erase(size)

    def wiped(self) -> None:
        """The whole screen is being drawn anew."""
        self._drawn = False

    def show(
        self, waiting: Sequence[Mapping[str, Any]], size: Size, modes: Modes, environ: Mapping[str, str]
    ) -> bytes:
        """The questions as they are now (`questions.Asked` as JSON)."""
        new = {where(question) for question in waiting} - {where(question) for question in self._waiting}
        if _first(waiting) != _first(self._waiting):
            self._since, self._seen = time.monotonic(), ""
        out = self._erase(size)
        self._waiting = waiting
        if new and self.interruptible(modes):  # inside of a string the bell would end it
            out += notification(waiting[-1], environ)
        return out + self._draw(size, modes)

    def tell(self, text: str, size: Size, modes: Modes) -> bytes:
        """Show `text` until another call; "" takes it away."""
        out = self._erase(size)
        self._notice = text
        return out + self._draw(size, modes)

    @property
    def asks(self) -> bool:
        """Whether a question waits."""
        return bool(self._waiting)

    @property
    def chosen(self) -> str | None:
        """The `host:port` that a key answers now; None: there is none, or it has only just appeared."""
        waiting = self._waiting
        if not waiting or time.monotonic() - self._since < _SETTLED:
            return None
        return where(waiting[0])

    def interruptible(self, modes: Modes) -> bool:
        """Somebody else may draw now, and put the cursor back."""
        return modes.interruptible and not self._half

    def _erase(self, size: Size) -> bytes:
        if not self._drawn:
            return b""
        self._drawn = False
        return b"%b\x1b[%d;1H\x1b[0m\x1b[2K%b" % (_SAVE, size.rows, _RESTORE)

    def _draw(self, size: Size, modes: Modes) -> bytes:
        fits = size.rows >= _LEAST_ROWS and size.columns >= _LEAST_COLUMNS
        self._drawn = bool(self._waiting or self._notice) and fits and self.interruptible(modes)
        self.visible = self._drawn and bool(self._waiting) and not modes.painting_held
        if not self._drawn:
            return b""
        if self.visible and self._seen != _first(self._waiting):
            self._since, self._seen = time.monotonic(), _first(self._waiting)
        text = self._line(size.columns - 1).encode("ascii")
        return b"%b\x1b[%d;1H\x1b[0;7m%b\x1b[0m\x1b[K%b" % (_SAVE, size.rows, text, _RESTORE)

    def _line(self, columns: int) -> str:
        if self._waiting:
            return line(self._waiting, columns, self._keys)
        text = f" moat: {ascii_only(self._notice)} "
        return text if len(text) <= columns else f"{text[: columns - 3]}.. "


def line(waiting: Sequence[Mapping[str, Any]], columns: int, keys: str = _KEYS) -> str:
    """The first question in at most `columns` characters of ASCII.

    What does not fit is left out of the path, then of the front of the host: its end says whose it is.
    """
    first = waiting[0]
    host = name(first)
    more = f" (+{len(waiting) - 1})" if len(waiting) > 1 else ""
    tail = f"{more} | {keys} "
    head = " moat: allow "
    room = columns - len(head) - len(tail)
    if room < len(host):
        head, tail = " ", f"{more}: {keys} "
        room = columns - len(head) - len(tail)
    if room < len(host):
        host = ".." + host[len(host) - max(room - 2, 8) :]
    what = f"{ascii_only(first['method'])} {host}{ascii_only(first['path'])}"
    text = (
        what
        if len(what) <= room
        else f"{host}{ascii_only(first['path'])}"[:room]
        if room > len(host)
        else host
    )
    return f"{head}{text}{tail}"[:columns]


def name(question: Mapping[str, Any]) -> str:
    """The host with its port, unless that is the one of HTTPS. Canonical, so ASCII without controls."""
    return where(question).removesuffix(":443")


def ascii_only(text: str) -> str:
    """What a sandbox sent, so that it neither draws nor looks like something else."""
    return safe(text).encode("ascii", "backslashreplace").decode()


def notification(question: Mapping[str, Any], environ: Mapping[str, str]) -> bytes:
    """The bell, and a desktop notification for terminals that are known to show one.

    Others print such a sequence, or take it for something else; multiplexers drop it.
    """
    text = f"Moat: a run asks for {name(question)}".encode("ascii", "backslashreplace")
    program, term = environ.get("TERM_PROGRAM", ""), environ.get("TERM", "")
    if environ.get("TMUX") or environ.get("STY"):
        return _BELL
    if term == "xterm-kitty":
        return _BELL + b"\x1b]99;;%b\x1b\\" % text
    if program in {"iTerm.app", "WezTerm", "ghostty"}:
        return _BELL + b"\x1b]9;%b\x1b\\" % text
    if term.startswith(("foot", "rxvt-unicode")):
        return _BELL + b"\x1b]777;notify;Moat;%b\x1b\\" % text
    return _BELL


def where(question: Mapping[str, Any]) -> str:
    """`host:port`."""
    from moat.authority import Authority

    return str(Authority(question["host"], question["port"]))


def _first(waiting: Sequence[Mapping[str, Any]]) -> str:
    return where(waiting[0]) if waiting else ""


def _ends_within_a_character(data: bytes) -> bool:
    """Whether the last bytes begin a character of UTF-8 that goes on in the next piece."""
    for back, byte in enumerate(reversed(data[-4:]), 1):
        if byte < 0x80:
            return False
        if byte >= 0xC0:
            return back < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4)
    return False
