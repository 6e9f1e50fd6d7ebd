"""Terminal modes and replay: what a stream of terminal output has switched on, and what is safe to repeat.

Moat is no terminal emulator; it passes bytes through. It watches for one thing: which modes the program
has switched on, so that a terminal can be brought back to normal when its user leaves, and brought into
the program's state when somebody attaches.

Repeating old output must never ask the terminal a question again (the answer would be typed into the
program), so `drawing_only` keeps text, colours, cursor moves and erasing, and nothing else.
"""

from __future__ import annotations

import re

from moat.regex import regex

# ECMA-48: CSI with parameters, intermediates, final; ESC and one final; OSC, DCS, APC, PM, SOS strings.
_SEQUENCE = regex(
    rb"\x1b(?:\[(?P<parameters>[0-?]*)(?P<between>[ -/]*)(?P<final>[@-~])"
    rb"|[\]P_^X][^\x07\x1b]*(?:\x07|\x1b\\)"
    rb"|(?P<escape>[ -/]*[0-OQ-WYZ\\`-~]))"
)
_UNFINISHED = regex(rb"\x1b(?:\[[0-?]*[ -/]*|[\]P_^X][^\x07\x1b]*\x1b?|[ -/]*)?\Z")
_BROKEN = regex(rb"\x1b(?:\[[0-?]*[ -/]*|[\]P_^X][^\x07\x1b]*|[ -/]*)")
_TITLE = regex(rb"\x1b\](?P<kind>[012]);(?P<text>[^\x00-\x1f\x7f]*)(?:\x07|\x1b\\)")
_MAX_UNFINISHED = 4096  # a string longer than this is not held back any more

_ALTERNATE = (b"47", b"1047", b"1049")
# Private modes a program may leave on: cursor keys, reverse video, origin, blinking cursor, mouse, focus,
# paste, alternate screen, and what newer terminals report on their own (colour scheme, size).
_TRACKED = frozenset(
    (*_ALTERNATE, *b"1 5 6 9 12 1000 1002 1003 1004 1005 1006 1007 1015 1016 2004 2027 2031 2048".split())
)
# Modes that are on in a terminal whose user has done nothing: to show the cursor, to wrap lines.
_USUAL = frozenset((b"25", b"7"))
_SYNCHRONIZED = b"2026"  # nothing is painted until it ends: a matter of milliseconds, never of an attach
_MAX_TITLE = 1024
_MAX_DEPTH = 16  # of the stacks that terminals keep for titles and keyboard flags
# Finals that draw: cursor moves, erase, insert, delete, scroll, SGR, scroll region, save and restore.
_DRAWING = frozenset(b"@ABCDEFGHIJKLMPSTXZ`abdefmrsu")
# Line wrapping, origin, insert mode: what follows is drawn elsewhere with them.
_DRAWING_MODES = frozenset((b"\x1b[?7h", b"\x1b[?7l", b"\x1b[?6h", b"\x1b[?6l", b"\x1b[4h", b"\x1b[4l"))
_DRAWING_ESCAPES = frozenset((b"7", b"8", b"D", b"E", b"M", b"(0", b"(B", b")0", b")B"))  # `(0`: line drawing
_MOVED = regex(rb"\x1b\[[\d;]*[ABEFHdf]")
_FORWARD = regex(rb"\x1b\[\d*[CG]")  # to a column: between words, instead of a space
_BLANKED = regex(rb"\x1b\[(?:2J|\?[\d;]*(?:47|1047|1049)h)")
_PLAIN = regex(rb"\x1b\[0*m")
_COLOURS = regex(rb"\x1b\[[\d;:]+m")
_REGION = regex(rb"\x1b\[[\d;]*r")
# Control characters of ISO 6429 in UTF-8, which many terminals obey as they do `ESC [` and its like. What is
# left when they go makes no new one.
# A run is looked at from its first byte only: from each of them, a quarter of a megabyte takes minutes.
_CONTROLS = regex(rb"(?<!\xc2)\xc2++[\x80-\x9f]+")
_LINE_END = regex(rb"(?<!\r)\r*+\n|\r")
_CLEARED = regex(rb"\x1bc|\x1b\[[23]J|\x1b\[\?(?:47|1047|1049)l")


class Modes:
    """Which terminal modes a stream has left switched on. Sequences may be split anywhere."""

    def __init__(self) -> None:
        self._rest = b""
        self._reset()

    def _reset(self) -> None:
        self._on: dict[bytes, None] = {}
        self._off: dict[bytes, None] = {}  # of `_USUAL`
        self._painting_held = False
        self._keypad = False
        self._charsets: dict[bytes, bytes] = {}  # designated ones: b"(" -> b"0" for line drawing
        self._cursor_shape = b""
        self._other_keys = b""  # modifyOtherKeys
        self._keyboards = (_Keyboard(), _Keyboard())  # of the main screen, and of the alternate one
        self._saved = False  # the cursor, and has not been restored
        self._titles_pushed = 0
        self._title = b""  # the sequence that set it

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
            elif (title := _TITLE.fullmatch(match.group())) and len(match.group()) <= _MAX_TITLE:
                text = _CONTROLS.sub(b"", title["text"])
                self._title = b"\x1b]" + title["kind"] + b";" + text + b"\x07"
        unfinished = _UNFINISHED.search(data, max(0, len(data) - _MAX_UNFINISHED))
        self._rest = unfinished.group() if unfinished else b""

    @property
    def alternate(self) -> bool:
        """The program draws on the alternate screen."""
        return any(mode in self._on for mode in _ALTERNATE)

    @property
    def painting_held(self) -> bool:
        """The terminal shows nothing of what is drawn now (synchronized output)."""
        return self._painting_held

    @property
    def interruptible(self) -> bool:
        """Somebody else may draw now, and put the cursor back: no sequence is unfinished, none saved it."""
        return not self._rest and not self._saved

    def pause(self) -> bytes:
        """Lets somebody else draw text anywhere, until `resume`."""
        out = [b"\x1b[?2026l"] if self._painting_held else []
        out += [b"\x1b[?6l"] if b"6" in self._on else []
        out += [b"\x1b" + slot + b"B" for slot in self._charsets]
        return b"".join([*out, b"\x1b[?25l\x1b[0m"])

    def resume(self) -> bytes:
        out = [b"\x1b[?6h"] if b"6" in self._on else []
        out += [b"\x1b" + slot + charset for slot, charset in self._charsets.items()]
        out += [] if b"25" in self._off else [b"\x1b[?25h"]
        return b"".join(out)

    def enter(self) -> bytes:
        """Brings a fresh terminal into this state."""
        main, alternate = self._keyboards
        out = [b"\x1b[22;0t" * self._titles_pushed, self._title, main.enter()]
        out += [b"\x1b[?" + mode + b"h" for mode in self._on]
        out += [alternate.enter()] if self.alternate else []
        out += [b"\x1b[?" + mode + b"l" for mode in self._off]
        out += [b"\x1b" + slot + charset for slot, charset in self._charsets.items()]
        out += [b"\x1b="] if self._keypad else []
        out += [b"\x1b[" + self._cursor_shape + b" q"] if self._cursor_shape else []
        out += [b"\x1b[>" + self._other_keys + b"m"] if self._other_keys else []
        return b"".join(out)

    def leave(self) -> bytes:
        """Brings a terminal in this state back to normal; nothing when nothing is on.

        A title that was set stays: only who saved the one before can bring it back.
        """
        main, alternate = self._keyboards
        out = [b"\x1b[?2026l"] if self._painting_held else []
        out += [alternate.leave()] if self.alternate else []
        out += [b"\x1b[>4m"] if self._other_keys else []
        out += [b"\x1b[ q"] if self._cursor_shape else []
        out += [b"\x1b>"] if self._keypad else []
        out += [b"\x1b" + slot + b"B" for slot in self._charsets]
        # The scroll region is reset on the alternate screen only: doing so moves the cursor home.
        out += [b"\x1b[r"] if self.alternate else []
        out += [b"\x1b[?" + mode + b"h" for mode in self._off]
        out += [b"\x1b[?" + mode + b"l" for mode in reversed(self._on)]
        out += [main.leave()]
        said = b"".join(out)
        return said + b"\x1b[0m" + b"\x1b[23;0t" * self._titles_pushed if said or self._titles_pushed else b""

    def _control(self, parameters: bytes, between: bytes, final: bytes) -> None:
        if final in b"hl" and parameters.startswith(b"?") and not between:
            for mode in parameters[1:].split(b";"):
                self._private(mode, on=final == b"h")
        elif final == b"u" and parameters[:1] in {b">", b"<", b"="}:
            self._keyboards[self.alternate].control(parameters)
        elif final in b"su" and not parameters and not between:
            self._saved = final == b"s"
        elif final == b"m" and parameters.startswith(b">"):
            self._other_keys = parameters[1:] if parameters[1:].count(b";") else b""
        elif final == b"q" and between == b" ":
            self._cursor_shape = parameters if parameters not in {b"", b"0"} else b""
        elif final == b"t" and parameters.split(b";")[0] in {b"22", b"23"}:
            step = 1 if parameters.startswith(b"22") else -1
            self._titles_pushed = min(_MAX_DEPTH, max(0, self._titles_pushed + step))
        elif final == b"p" and between == b"!":  # soft reset
            self._off.clear()
            self._charsets.clear()
            self._keypad = False
            self._on.pop(b"1", None)
            self._on.pop(b"6", None)

    def _private(self, mode: bytes, *, on: bool) -> None:
        if mode == _SYNCHRONIZED:
            self._painting_held = on
            return
        if mode in _USUAL:
            _switch(self._off, mode, on=not on)
        elif mode in _TRACKED:
            _switch(self._on, mode, on=on)
        if mode in _ALTERNATE and not on:
            self._keyboards = (self._keyboards[0], _Keyboard())

    def _escape(self, escape: bytes) -> None:
        if escape == b"c":  # full reset
            self._reset()
        elif escape in {b"=", b">"}:
            self._keypad = escape == b"="
        elif escape in {b"7", b"8"}:
            self._saved = escape == b"7"
        elif escape[:1] in {b"(", b")"}:
            if escape[1:] == b"B":
                self._charsets.pop(escape[:1], None)
            else:
                self._charsets[escape[:1]] = escape[1:]


def _switch(modes: dict[bytes, None], mode: bytes, *, on: bool) -> None:
    if on:
        modes[mode] = None
    else:
        modes.pop(mode, None)


class _Keyboard:
    """The kitty keyboard protocol on one screen: a stack of flags; the lowest were set without pushing."""

    def __init__(self) -> None:
        self._flags = [0]

    def control(self, parameters: bytes) -> None:
        """`> flags`: push, `< count`: pop, `= flags ; how`: replace, add or take away."""
        kind, numbers = parameters[:1], [_number(text) for text in parameters[1:].split(b";")]
        if kind == b">":
            self._flags = [*self._flags, numbers[0]][-_MAX_DEPTH:]
        elif kind == b"<":
            del self._flags[max(1, len(self._flags) - (numbers[0] or 1)) :]
        else:
            old, new = self._flags[-1], numbers[0]
            how = numbers[1] if len(numbers) > 1 else 1
            self._flags[-1] = {2: old | new, 3: old & ~new}.get(how, new)

    def enter(self) -> bytes:
        base = b"\x1b[=%du" % self._flags[0] if self._flags[0] else b""
        return base + b"".join(b"\x1b[>%du" % flags for flags in self._flags[1:])

    def leave(self) -> bytes:
        pushed = len(self._flags) - 1
        return (b"\x1b[<%du" % pushed if pushed else b"") + (b"\x1b[=0u" if self._flags[0] else b"")


def _number(text: bytes) -> int:
    """0 for what no terminal would take; `int` refuses thousands of digits with an error."""
    return int(text) if text.isdigit() and len(text) <= 4 else 0


def drawing_only(data: bytes) -> bytes:
    """The part of old terminal output that may be sent to a terminal again.

    Starts after the last full clear, so that what was wiped stays wiped.
    """
    start = max((match.end() for match in _CLEARED.finditer(data)), default=0)
    parts: list[bytes] = []
    at = start
    for match in _SEQUENCE.finditer(data, start):
        parts += (_unbroken(data[at : match.start()]), _keep_drawing(match))
        at = match.end()
    return _CONTROLS.sub(b"", b"".join([*parts, _unbroken(data[at:])]))


def _unbroken(text: bytes) -> bytes:
    """Text between sequences, without beginnings of any.

    They must go: what stands between two halves of a sequence is taken out, and the halves would meet.
    """
    return _BROKEN.sub(b"", text) if b"\x1b" in text else text


def full_screen(data: bytes) -> bytes | None:
    """What `data` has drawn on the alternate screen; None when it does not go back to a blank one."""
    blank = max(_BLANKED.finditer(data), key=re.Match.end, default=None)
    if blank is None:
        return None
    # A screen is blanked in the colour of the moment, and colours and scroll region go on to apply.
    before = data[: blank.start()]
    colours = _COLOURS.findall(before[max((match.end() for match in _PLAIN.finditer(before)), default=0) :])
    regions = _REGION.findall(before)
    again = b"\x1b[2J\x1b[H" if blank.group().endswith(b"J") else b""
    return b"".join([*regions[-1:], *colours, again]) + drawing_only(data[blank.end() :])


def _keep_drawing(match: re.Match[bytes]) -> bytes:
    if match["final"]:
        if match.group() in _DRAWING_MODES:
            return match.group()
        plain = not match["between"] and match["parameters"][:1] not in {b"?", b">", b"<", b"="}
        return match.group() if plain and match["final"][0] in _DRAWING else b""
    return match.group() if match["escape"] in _DRAWING_ESCAPES else b""


def text_only(data: bytes) -> bytes:
    """Terminal output as plain text: no escape sequence, no control character but tab and newline.

    A move of the cursor within its line is a space.
    """
    text = _UNFINISHED.sub(b"", _SEQUENCE.sub(b"", _FORWARD.sub(b" ", data)))
    text = _LINE_END.sub(b"\n", text)
    return _CONTROLS.sub(b"", re.sub(rb"[\x00-\x08\x0b-\x1f\x7f]", b"", text))


def last_line(data: bytes) -> str:
    """The last line with something on it. A program that addresses the cursor begins a line each time."""
    lines = text_only(_MOVED.sub(b"\n", data)).decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
