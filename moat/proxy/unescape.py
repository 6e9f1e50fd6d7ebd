"""Text without its escapes: percent, JSON and C backslashes, HTML entities, broken lines. Sans-IO.

All kinds are opened in one pass, in whatever mixture they stand; what was escaped several times over is
opened several times. A view remembers where its bytes came from, so that what is found in it can be masked
in the original.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator

OPENERS = (b"%", b"\\", b"&")  # every escape begins with one
# As numbers: `in` tries bytes as one first, and drops a TypeError that takes longer than the search.
_PERCENT_SIGN, _BACKSLASH_SIGN, _AMPERSAND = b"".join(OPENERS)
_DEPTH = 4  # escapes of escapes of escapes of escapes
_PERCENT = rb"%([0-9A-Fa-f]{2})"
_BACKSLASH = (
    rb"\\(?:u([0-9A-Fa-f]{4})|u\{([0-9A-Fa-f]{1,6})\}|U([0-9A-Fa-f]{8})|x([0-9A-Fa-f]{2})|([0-3][0-7]{2})"
    rb"|([nrt])|([^A-Za-z0-9\r\n]))"
)
_ENTITY = rb"&(?:#([0-9]{1,12})|#[xX]([0-9A-Fa-f]{1,12})|([A-Za-z][A-Za-z0-9]{1,31}));?"
# Broken lines, and the other halves of UTF-16 and UTF-32. Every alternative begins with a plain byte, or `re`
# would try them all at every byte.
_NOTHING = rb"\r[\r\n]*+[ \t]*+|\n[\r\n]*+[ \t]*+|\x00\x00*+"


class _Escapes:
    """Finds escapes of some kinds, and knows what they stand for."""

    def __init__(self, *kinds: bytes) -> None:
        parts = [
            kind if kind in kinds else rb"(?!)" + rb"()" * re.compile(kind).groups
            for kind in (_PERCENT, _BACKSLASH, _ENTITY)
        ]
        pattern = rb"|".join((*parts, _NOTHING))  # groups are numbered as if it found all kinds
        self._one = re.compile(pattern)
        self._between = re.compile(b"(" + re.sub(rb"(?<!\\)\((?!\?)", b"(?:", pattern) + b")")
        self._known: dict[bytes, bytes] = {}

    def found_in(self, text: bytes) -> bool:
        return self._one.search(text) is not None

    def opened(self, text: bytes) -> bytes:
        """The text with what its escapes stand for. All of it may be escapes: each costs one look-up."""
        pieces = self._between.split(text)
        if len(pieces) == 1:
            return text
        if len(self._known) > _KNOWN:
            self._known.clear()
        known, escapes = self._known, pieces[1::2]
        for escape in set(escapes) - known.keys():
            known[escape] = self._stands_for(escape)
        pieces[1::2] = [known[escape] for escape in escapes]
        return b"".join(pieces)

    def marks(self, text: bytes) -> list[tuple[int, int, int, int]]:
        """Each escape: from and to in what `opened` gives, from and to in `text`."""
        marks: list[tuple[int, int, int, int]] = []
        at = size = 0
        for match in self._one.finditer(text):
            plain = _plain(match)
            if plain is not None:
                start = size + match.start() - at
                size, at = start + len(plain), match.end()
                marks.append((start, size, match.start(), at))
        return marks

    def _stands_for(self, escape: bytes) -> bytes:
        match = self._one.match(escape)
        assert match is not None
        plain = _plain(match)
        return escape if plain is None else plain


_KNOWN = 4096  # escapes that are remembered, and as many more as one text has
_ESCAPES = _Escapes(_PERCENT, _BACKSLASH, _ENTITY)
_ONE_KIND = (_Escapes(_PERCENT), _Escapes(_BACKSLASH), _Escapes(_ENTITY))
_BYTE = frozenset({1, 5})  # groups that name a byte
_CODE_POINT = frozenset({2, 3, 4, 10})  # groups that name a character, in hexadecimal
_UNFINISHED = re.compile(
    rb"(?:%[0-9A-Fa-f]?"
    rb"|\\(?:u(?:[0-9A-Fa-f]{0,3}|\{[0-9A-Fa-f]{0,6})|U[0-9A-Fa-f]{0,7}|x[0-9A-Fa-f]?|[0-3][0-7]?)?"
    rb"|&(?:#(?:[0-9]{0,12}|[xX][0-9A-Fa-f]{0,12})|[A-Za-z][A-Za-z0-9]{0,31})?)\Z"
)
_CONTROL = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}


class View:
    """One reading of a text. The first one is the text itself."""

    __slots__ = ("_escapes", "_from", "_marks", "_source", "_starts", "text")

    def __init__(self, text: bytes) -> None:
        self.text = text
        self._from: View | None = None
        self._source = b""  # what it was opened from
        self._escapes = _ESCAPES
        self._marks: list[tuple[int, int, int, int]] | None = None  # made when somebody asks where
        self._starts: list[int] = []

    def opened(self, escapes: _Escapes = _ESCAPES) -> View | None:
        """The next reading, or None when there is nothing to open."""
        text = escapes.opened(self.text)
        if text == self.text:
            return None
        view = View(text)
        view._from, view._source, view._escapes = self, self.text, escapes
        return view

    def start(self, at: int) -> int:
        """Where byte `at` of this view begins in the original."""
        view: View | None = self
        while view is not None and view._from is not None:
            mark = view._mark(at)
            at, view = (mark[2] if at < mark[1] else mark[3] + at - mark[1]), view._from
        return at

    def end(self, at: int) -> int:
        """Where byte `at - 1` of this view ends in the original."""
        view: View | None = self
        while view is not None and view._from is not None:
            mark = view._mark(at - 1)
            at, view = (mark[3] if at - 1 < mark[1] else mark[3] + at - mark[1]), view._from
        return at

    def trim(self, *, alone: bool = False) -> bool:
        """Take off an escape that the end of the text may have cut: half of it reads as something else.

        `alone`: also when a backslash before it makes it none, for whom backslashes mean nothing.
        """
        at = _unfinished(self.text, alone=alone)
        if at < 0:
            return False
        self.text = self.text[:at]
        return True

    def _mark(self, at: int) -> tuple[int, int, int, int]:
        if self._marks is None:
            self._marks = self._escapes.marks(self._source)
            self._starts = [mark[0] for mark in self._marks]
        index = bisect_right(self._starts, at) - 1
        return self._marks[index] if index >= 0 else (0, 0, 0, 0)


def has_opener(text: bytes) -> bool:
    """Whether `text` has a byte that an escape begins with. Three `memchr`: quicker than any search."""
    return _PERCENT_SIGN in text or _BACKSLASH_SIGN in text or _AMPERSAND in text


def has_escape(text: bytes) -> bool:
    """Whether `text` has a second reading, or ends in what may become an escape."""
    return _ESCAPES.found_in(text) or _unfinished(text) >= 0


def views(text: bytes) -> Iterator[View]:
    """The text, and what it reads as once its escapes are opened, up to four times.

    Each is made of the one before when it is asked for, so that a trimmed one counts.
    """
    yield from _from(View(text))


def all_views(text: bytes) -> Iterator[View]:
    """The same, and each kind of escape opened alone, in any order: for what itself looks like an escape."""
    first = View(text)
    yield from _from(first)
    newest = [first]
    for _ in range(_DEPTH - 1):
        newest = [view for each in newest for kind in _ONE_KIND if (view := each.opened(kind)) is not None]
        yield from newest


def _from(first: View) -> Iterator[View]:
    view: View | None = first
    for _ in range(_DEPTH + 1):
        if view is None:
            return
        yield view
        view = view.opened()


def _unfinished(text: bytes, *, alone: bool = False) -> int:
    """Where an escape begins that the end of `text` may have cut, or -1."""
    match = _UNFINISHED.search(text, max(0, len(text) - 40))
    if match is None:
        return -1
    before = text[: match.start()]
    escaped = (len(before) - len(before.rstrip(b"\\"))) % 2
    return -1 if escaped and not alone else match.start()


def _plain(match: re.Match[bytes]) -> bytes | None:
    """What an escape stands for; None when it is none after all."""
    kind = match.lastindex
    if kind is None:
        return b""
    text = match[kind]
    if kind in _BYTE:
        return bytes((int(text, 16),))
    if kind in _CODE_POINT:
        return _encoded(int(text, 16))
    if kind == 6:
        return bytes((int(text, 8),))
    if kind == 7:
        return _CONTROL[text]
    if kind == 8:
        return text
    return _encoded(int(text)) if kind == 9 else _entity(text)


def _encoded(code: int) -> bytes | None:
    return chr(code).encode("utf-8", "surrogatepass") if code < 0x110000 else None


def _entity(name: bytes) -> bytes | None:
    from html.entities import html5  # 2,000 names, seldom needed

    found = html5.get(name.decode("ascii") + ";")
    return found.encode() if found is not None else None
