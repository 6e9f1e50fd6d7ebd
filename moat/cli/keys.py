"""The chord (`chord`) and then `d` (detach), `k` (stop the run), `a`, `n` (yes and no to what is asked).

The chord comes as a control character, or as a sequence of the kitty keyboard protocol or of xterm's
modifyOtherKeys, with release and repeat events and more fields when the program asked for them. A sequence
may arrive in pieces. A lone ESC is a key of its own and is passed on at once; when `[47;5u` follows after
all, it is still recognised, and the program has seen one ESC too many.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum

from moat.chord import DEFAULT, Chord
from moat.regex import regex

_KITTY = regex(rb"\x1b\[(\d{1,7})(?::[\d:]*)?(?:;(\d{1,4})(?::(\d))?)?(?:;[\d:]*)?u")
_XTERM = regex(rb"\x1b\[27;(\d{1,4});(\d{1,7})~")  # modifyOtherKeys
_BEGUN = regex(rb"\x1b\[[\d:;]*\Z")
_REPORT = regex(rb"\x1b\[[?>]?[\d;]*(?:\$y|[RcnIO])")  # answers of a terminal, and its focus
_CONTROL, _RELEASE = 4, b"3"
_LOCKS = 64 | 128  # caps lock and num lock are reported as modifiers


class Action(Enum):
    DETACH = b"d"
    STOP = b"k"
    ALLOW = b"a"
    DENY = b"n"
    CHORD = b""  # the program gets the chord itself: chosen in the menu


ANSWERS = frozenset({Action.ALLOW, Action.DENY})


class DetachKeys:
    """Bytes from the terminal in, bytes for the run and perhaps an action out. No clock, no terminal."""

    def __init__(self, chord: Chord = DEFAULT, *, asked: Callable[[], bool] = lambda: False) -> None:
        """asked: whether a question waits; without one, its keys are the program's."""
        self._chord = chord
        self._special = re.compile(b"[\x1b" + re.escape(chord.byte) + b"]")
        self._asked = asked
        self._held = b""  # the beginning of a sequence
        self._prefix = b""  # the chord as it was typed, waiting for the next key
        self._ghost = False  # the next byte to look at is an ESC that has been passed on already

    @property
    def holding(self) -> bool:
        """A sequence is incomplete: call `flush` when nothing follows within a moment."""
        return bool(self._held)

    @property
    def called(self) -> bool:
        """The chord was pressed, and no key after it: call `forget` when none follows within a moment."""
        return bool(self._prefix) and not self._held

    def forget(self) -> bytes:
        """The chord was meant for Moat. Returns it as it was typed, should the program get it after all."""
        typed, self._prefix = self._prefix, b""
        return typed

    def flush(self) -> bytes:
        """What was held back turned out to be all."""
        out = self._prefix + self._held[self._ghost :]
        self._held, self._prefix, self._ghost = b"", b"", False
        return out

    def feed(self, data: bytes) -> tuple[bytes, Action | None]:
        if self._ghost and not self._held:
            data = b"\x1b" + data
        data, self._held = self._held + data, b""
        out = bytearray()
        at = 0
        while at < len(data):
            key, at = self._next(data, at)
            if key is None:
                break
            before = len(out)
            action = self._key(key, out)
            if self._ghost:
                self._ghost = False
                del out[before : before + 1]
                self._prefix = self._prefix.removeprefix(b"\x1b")
            if action:
                return bytes(out), action
        if data.endswith(b"\x1b") and out.endswith(b"\x1b"):
            self._ghost = True
        return bytes(out), None

    def _next(self, data: bytes, at: int) -> tuple[bytes | None, int]:
        """The key at `at`, and where the next one begins. None: more is needed, or nothing is left."""
        if sequence := _KITTY.match(data, at) or _XTERM.match(data, at):
            return sequence.group(), sequence.end()
        if self._prefix and (report := _REPORT.match(data, at)):
            return report.group(), report.end()
        if begun := _BEGUN.match(data, at):
            self._held = begun.group()
            return None, len(data)
        if self._prefix and data[at:] == b"\x1b":
            self._held = b"\x1b"
            return None, len(data)
        if self._prefix or data[at : at + 1] == self._chord.byte:
            return data[at : at + 1], at + 1
        # Everything up to the next thing that could matter is passed on as one piece.
        found = self._special.search(data, at + 1)
        end = found.start() if found else len(data)
        return data[at:end], end

    def _key(self, key: bytes, out: bytearray) -> Action | None:
        code, modifiers, released = decode(key)
        if released or _REPORT.fullmatch(key):
            if not (self._prefix and released):
                out += key
            return None
        if key == self._chord.byte or (code in self._chord.codes and modifiers == _CONTROL):
            out += self._prefix  # twice sends one
            self._prefix = b"" if self._prefix else key
            return None
        if not self._prefix:
            out += key
            return None
        for action in (Action.DETACH, Action.STOP, *ANSWERS):
            if code == ord(action.value) and not modifiers and (action not in ANSWERS or self._asked()):
                self._prefix = b""
                return action
        if code is not None and 57441 <= code <= 57454:  # a modifier key going down on its own
            return None
        out += self._prefix + key
        self._prefix = b""
        return None


def decode(key: bytes) -> tuple[int | None, int, bool]:
    """Code point, modifiers without locks, and whether the key was released. None: it has no code point."""
    if match := _KITTY.fullmatch(key):
        modifiers = (int(match[2] or b"1") - 1) & ~_LOCKS
        return int(match[1]), modifiers, match[3] == _RELEASE
    if match := _XTERM.fullmatch(key):
        return int(match[2]), (int(match[1]) - 1) & ~_LOCKS, False
    return (key[0] if len(key) == 1 else None), 0, False
