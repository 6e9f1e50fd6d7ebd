"""The key that calls Moat while a program has the keyboard: ctrl-/ unless the user chose another."""

from __future__ import annotations

from moat.dataclass import dataclass
from moat.errors import UsageError
from moat.regex import regex

_SPELLING = regex(r"ctrl-([a-z/_\\\]^@])")
_KEYS_OF_THEIR_OWN = "him"  # backspace, tab, enter; `[` is Escape
_HINT = "ctrl-/, ctrl- and a letter (not h, i or m) or one of \\ ] ^ @, or none"


@dataclass(frozen=True, slots=True)
class Chord:
    name: str  # as the user writes it
    byte: bytes  # the control character; empty: there is no chord
    codes: frozenset[int]  # code points of the keys that make it with Ctrl, where terminals tell keys apart


def parse(text: str) -> Chord:
    """`ctrl-/`, `ctrl-g`…; `none`. Raises UsageError."""
    name = text.strip().lower()
    if name == "none":
        return Chord(name, b"", frozenset())
    match = _SPELLING.fullmatch(name)
    if match is None or match[1] in _KEYS_OF_THEIR_OWN:
        raise UsageError(f"{text!r} cannot be the key that calls Moat", hint=_HINT)
    key = "_" if match[1] == "/" else match[1]  # one control character
    codes = {ord("/"), ord("_")} if key == "_" else {ord(key)}
    return Chord(name, bytes([ord(key.upper()) & 0x1F]), frozenset(codes))


DEFAULT = parse("ctrl-/")
