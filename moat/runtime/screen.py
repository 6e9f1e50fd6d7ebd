"""Terminal modes and replay: what a stream of terminal output has switched on, and what is safe to repeat.

Moat is no terminal emulator; it passes bytes through. It watches for one thing: which modes the program
has switched on, so that a terminal can be brought back to normal when its user leaves, and brought into
the program's state when somebody attaches.

Repeating old output must never ask the terminal a question again (the answer would be typed into the
program), so `drawing_only` keeps text, colours, cursor moves and erasing, and nothing else.
"""

from __future__ import annotations

import re

# ECMA-48: CSI with parameters, intermediates, final; ESC and one final; OSC, DCS, APC, PM, SOS strings.
_SEQUENCE = re.compile(
    rb"\x1b(?:\[(?P<parameters>[0-?]*)(?P<between>[ -/]*)(?P<final>[@-~])"
    rb"|[\]P_^X][^\x07\x1b]*(?:\x07|\x1b\\)"
    rb"|(?P<escape>[ -/]*[0-OQ-WYZ\\`-~]))"
)
_UNFINISHED = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*|[\]P_^X][^\x07\x1b]*\x1b?|[ -/]*)?\Z")
_MAX_UNFINISHED = 4096  # a string longer than this is not held back any more

_ALTERNATE = (b"47", b"1047", b"1049")
# Private modes a program may leave on: cursor keys, mouse, focus, paste, alternate screen.
_TRACKED = frozenset(
    (*_ALTERNATE, b"1", b"9", b"1000", b"1002", b"1003", b"1004", b"1005", b"1006", b"1015", b"1016", b"2004")
)
# Finals that draw: cursor moves, erase, insert, delete, scroll, SGR, scroll region, save and restore.
_DRAWING = frozenset(b"@ABCDEFGHIJKLMPSTXZ`abdefmrsu")
_DRAWING_ESCAPES = frozenset((b"7", b"8", b"D", b"E", b"M"))
_CLEARED = re.compile(rb"\x1bc|\x1b\[[23]J|\x1b\[\?(?:47|1047|1049)l")


class Modes:
    """Which terminal modes a stream has left switched on. Sequences may be split anywhere."""

    def __init__(self) -> None:
        self._on: dict[bytes, None] = {}
        self._cursor_hidden = False
        self._keypad = False
        self._kitty: list[bytes] = []  # pushed keyboard flags
        self._other_keys = b""  # modifyOtherKeys
        self._saved = False  # the cursor, and has not been restored
        self._rest = b""

    def feed(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        self._rest = b""
        if b"\x1b" not in data:
            return
        for match in _SEQUENCE.finditer(data):
            if match["final"]:
                self._control(match["parameters"], match["between"], match["final"])
            elif match["escape"]:
                self._escape(match["escape"])
        unfinished = _UNFINISHED.search(data, max(0, len(data) - _MAX_UNFINISHED))
        self._rest = unfinished.group() if unfinished else b""

    @property
    def alternate(self) -> bool:
        """The program draws on the alternate screen."""
        return any(mode in self._on for mode in _ALTERNATE)

    @property
    def interruptible(self) -> bool:
        """Somebody else may draw now, and put the cursor back: no sequence is unfinished, none saved it."""
        return not self._rest and not self._saved

    def enter(self) -> bytes:
        """Brings a fresh terminal into this state."""
        out = [b"\x1b[?" + mode + b"h" for mode in self._on]
        out += [b"\x1b[?25l"] if self._cursor_hidden else []
        out += [b"\x1b="] if self._keypad else []
        out += [b"\x1b[>" + flags + b"u" for flags in self._kitty]
        out += [b"\x1b[>" + self._other_keys + b"m"] if self._other_keys else []
        return b"".join(out)

    def leave(self) -> bytes:
        """Brings a terminal in this state back to normal; nothing when nothing is on."""
        out = [b"\x1b[<%du" % len(self._kitty)] if self._kitty else []
        out += [b"\x1b[>4m"] if self._other_keys else []
        out += [b"\x1b>"] if self._keypad else []
        # The scroll region is reset on the alternate screen only: doing so moves the cursor home.
        out += [b"\x1b[r"] if self.alternate else []
        out += [b"\x1b[?" + mode + b"l" for mode in reversed(self._on)]
        out += [b"\x1b[?25h"] if self._cursor_hidden else []
        return b"".join([*out, b"\x1b[0m"]) if out else b""

    def _control(self, parameters: bytes, between: bytes, final: bytes) -> None:
        if final in b"hl" and parameters.startswith(b"?") and not between:
            for mode in parameters[1:].split(b";"):
                self._private(mode, on=final == b"h")
        elif final == b"u" and parameters[:1] in {b">", b"<", b"="}:
            self._keyboard(parameters)
        elif final in b"su" and not parameters and not between:
            self._saved = final == b"s"
        elif final == b"m" and parameters.startswith(b">"):
            self._other_keys = parameters[1:] if parameters[1:].count(b";") else b""
        elif final == b"p" and between == b"!":  # soft reset
            self._cursor_hidden = self._keypad = False
            self._on.pop(b"1", None)

    def _private(self, mode: bytes, *, on: bool) -> None:
        if mode == b"25":
            self._cursor_hidden = not on
        elif mode in _TRACKED and on:
            self._on[mode] = None
        elif mode in _TRACKED:
            self._on.pop(mode, None)

    def _keyboard(self, parameters: bytes) -> None:
        kind, flags = parameters[:1], parameters[1:]
        if kind == b">":
            self._kitty = [*self._kitty, flags or b"0"][-16:]
        elif kind == b"<":
            count = int(flags) if flags.isdigit() else 1
            self._kitty = self._kitty[: max(0, len(self._kitty) - count)]
        elif self._kitty:
            self._kitty[-1] = flags.split(b";")[0] or b"0"

    def _escape(self, escape: bytes) -> None:
        if escape == b"c":  # full reset
            self._on.clear()
            self._kitty.clear()
            self._cursor_hidden = self._keypad = False
            self._other_keys = b""
            self._saved = False
        elif escape in {b"=", b">"}:
            self._keypad = escape == b"="
        elif escape in {b"7", b"8"}:
            self._saved = escape == b"7"


def drawing_only(data: bytes) -> bytes:
    """The part of old terminal output that may be sent to a terminal again.

    Starts after the last full clear, so that what was wiped stays wiped.
    """
    start = max((match.end() for match in _CLEARED.finditer(data)), default=0)
    kept = _SEQUENCE.sub(_keep_drawing, data[start:])
    return _UNFINISHED.sub(b"", kept)


def _keep_drawing(match: re.Match[bytes]) -> bytes:
    if match["final"]:
        plain = not match["between"] and match["parameters"][:1] not in {b"?", b">", b"<", b"="}
        return match.group() if plain and match["final"][0] in _DRAWING else b""
    return match.group() if match["escape"] in _DRAWING_ESCAPES else b""


def text_only(data: bytes) -> bytes:
    """Terminal output as plain text: no escape sequence, no control character but tab and newline."""
    text = _UNFINISHED.sub(b"", _SEQUENCE.sub(b"", data))
    text = re.sub(rb"\r*\n|\r", b"\n", text)
    return re.sub(rb"[\x00-\x08\x0b-\x1f\x7f]", b"", text)
