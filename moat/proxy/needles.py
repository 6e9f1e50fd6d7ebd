"""What a secret looks like when it comes back, and one quick search for all of that. Sans-IO.

A spelling is a secret as it is, in base64 (three alignments), in hexadecimal or as a list of numbers. Any
spelling may be escaped, wholly or in part. An occurrence therefore either holds one of the spelling's
windows (a few letters and digits in a row) untouched, or an escape that stands for a letter or digit, which
honest text hardly ever has. Two searches in C for windows and for such escapes rule out nearly all there is
to read; only around what they find is text unescaped and compared.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from moat.dataclass import dataclass
from moat.proxy.unescape import OPENERS, View, all_views, has_escape, has_opener, views

if TYPE_CHECKING:
    from ahocorasick_rs import BytesAhoCorasick

_WINDOW = 8  # bytes; fewer give false alarms, more do not fit between the special characters of a key
_ENCODED_FROM = 8  # bytes of a secret from which on its encoded forms are long enough to mean something
_BREAK = b"\r\n\t \x00"
_LINE_ENDS = b"\r\n"
# Characters of a beginning that are held back; fewer are only remembered.
_ENOUGH = 4  # of a short secret: an eighth of it
_ENOUGH_OF_A_LINE = 8  # before a line break
_TELLING = 6  # characters of a secret that tell a part of it, and seldom stand at an end by chance
_NEAR = 64  # bytes in which most runs end
_MATERIAL = frozenset(b"%\\&#;{}" + _BREAK).union(range(48, 58), range(65, 91), range(97, 123))

# Words in which no byte is rare and none is a common first byte, so that the search never takes its path for
# few bytes, which is a hundred times slower on data full of them.
_DECOYS = (
    b"\xf5\x01\xc0\x02\xf6\xc1", b"\xf7\x03\xc1\x04\xf8\x05", b"\xf9\x06\xfa\x07\xfb\x08",
    b"\xfc\x0e\xfd\x0f\xfe\x10", b"\xff\x11\xfe\x12\xc0\x13",
)  # fmt: skip
_PATTERNS = 56  # in one search; with more than 64 it loses its vector instructions

_ANY = bytes(range(256))
_LETTER = rb"(?:3[0-9]|[46][1-9A-Fa-f]|[57][0-9Aa]|2[56]|5[Cc])"  # a letter, a digit, or `%`, `&`, `\`
_DECIMAL = rb"0*(?:4[89]|5[0-7]|6[5-9]|[78][0-9]|9[027-9]|1[01][0-9]|12[0-2]|3[78])(?![0-9])"
_SUSPECT = re.compile(
    rb"%" + _LETTER + rb"|\\(?:u00" + _LETTER + rb"|u\{|U0000|x" + _LETTER + rb"|(?:0[467]|1[0-7])[0-7])"
    rb"|&(?:#" + _DECIMAL + rb"|#[xX]0*" + _LETTER + rb"(?![0-9A-Fa-f])|amp;#)"
)  # fmt: skip
_ALNUM = (*(b"3%d" % digit for digit in range(10)), b"4", b"5", b"6", b"7")  # but not `%3A`, which is common
# What such escapes begin with, exactly enough to leave out the common ones. One search for each first byte: a
# search that has one byte to begin with runs at the speed of memory where that byte is not.
_BEGINNINGS = (
    tuple(b"%" + digits for digits in (*_ALNUM, b"25", b"26")),
    tuple(b"\\" + start for start in (
        *(b"u00" + digits for digits in (*_ALNUM, b"25", b"26")),
        *(b"x" + digits for digits in (*_ALNUM, b"25", b"26")), b"04", b"06", b"07", b"1", b"u{", b"U0000",
    )),
    tuple(b"&" + start for start in (
        *(b"#%d" % digit for digit in (0, 1, 37, 38, 4, 5, 6, 7, 8, 9)),
        *(b"#%b%d" % (x, digits) for x in (b"x", b"X") for digits in (0, 3, 4, 5, 6, 7, 25, 26)), b"amp;#",
    )),
)  # fmt: skip
# The same in few words for data that is no text, where every first byte is all the time, and the bytes of
# which one follows such a word in a suspect. Up to 16 words need no decoys, which would only slow them down.
_ROUGHLY = {
    b"%2": b"56", b"%3": b"0123456789", b"%4": b"123456789ABCDEFabcdef", b"%5": b"0123456789ACac",
    b"%6": b"123456789ABCDEFabcdef", b"%7": b"0123456789Aa",
    b"\\u00": b"234567", b"\\u{": _ANY, b"\\U0": b"0", b"\\x": b"234567", b"\\0": b"467", b"\\1": b"01234567",
    b"&#": b"013456789Xx", b"&amp;#": _ANY,
}  # fmt: skip
_FOLLOWING = tuple(map(frozenset, _ROUGHLY.values()))
_DENSE = 32  # bytes for each escape: to look at every one would cost more than to read everything
_SAMPLE = 64  # bytes that tell text from other data; either way nothing is missed, it only takes longer
_NO_TEXT = bytes((*range(9), *range(14, 32), *range(128, 256)))
_RUN = re.compile(rb"[A-Za-z0-9]{4,}")


@dataclass(frozen=True, slots=True)
class _Spelling:
    text: bytes
    windows: tuple[bytes, ...]  # every occurrence holds one, unless a letter or digit of it is escaped
    unit: int = 16  # bytes that one byte may take when it is escaped
    broken: bool = False  # may be broken into lines: base64
    escaped: bool = False  # reads as something else when it is unescaped
    plain: bool = False  # the secret as it is


class Needles:
    """All spellings of some secrets."""

    def __init__(self, spellings: Sequence[_Spelling], literals: Sequence[bytes] = ()) -> None:
        """`literals` are looked for as they are, unescaped."""
        self._texts = tuple(dict.fromkeys(spelling.text for spelling in spellings))
        self._literals = frozenset(literals)
        self._all_texts = (*self._texts, *self._literals)
        self._broken = tuple(dict.fromkeys(spelling.text for spelling in spellings if spelling.broken))
        self._short = frozenset(
            text[:size] for text in self._all_texts for size in (1, 2, 3) if size < len(text)
        )
        heads = {text[:4] for text in self._all_texts if len(text) > 4}
        self._heads = re.compile(b"|".join(map(re.escape, sorted(heads))) or b"(?!)")
        self._longest = max(map(len, self._all_texts))
        self._shortest = min(map(len, self._texts))
        self.enough = min(_ENOUGH, max(1, self._shortest // 8))  # see `held`
        self.telling = min(_TELLING, max(1, self._shortest // 2))
        self._span = max(spelling.unit * len(spelling.text) for spelling in spellings)
        self._inside = frozenset(b"".join(self._all_texts))
        # The bytes that an occurrence is made of: any other ends it.
        self._material = bytes(_MATERIAL.union(*self._texts))
        self._edge = re.compile(b"[^" + re.escape(self._material) + b"]")
        self._alike = any(spelling.escaped for spelling in spellings)  # to escapes
        # No letters in a row to look for: then everything is read closely.
        self._thorough = any(not spelling.windows for spelling in spellings)
        patterns = [
            *literals,
            *dict.fromkeys(window for spelling in spellings for window in spelling.windows),
        ]
        self._searches = [
            _search((*patterns[at : at + _PATTERNS], *_DECOYS)) for at in range(0, len(patterns), _PATTERNS)
        ]
        self._untouched = {} if self._alike else self._untouched_echoes(spellings)

    def spans(self, text: bytes) -> list[tuple[int, int]]:
        """Where secrets stand in `text`, from and to, in no order, perhaps overlapping."""
        found: list[tuple[int, int]] = []
        if len(text) < self._shortest:
            return found
        suspicions = _suspects(text) if has_opener(text) else []
        thorough = self._thorough or suspicions is None
        suspicions = suspicions or []
        for search in self._searches:
            for _, start, end in search.find_matches_as_indexes(text):
                window = text[start:end]
                before, whole = self._untouched.get(window, (0, b""))
                if whole and start >= before and text.startswith(whole, start - before):
                    found.append((start - before, start - before + len(whole)))
                elif window in self._literals:
                    found.append((start, end))
                else:
                    suspicions.append(start)
        if suspicions or thorough:
            found += self._read(
                text, [(0, len(text))] if thorough else self._regions(text, sorted(suspicions))
            )
        return found

    def held(self, text: bytes, enough: int = 0) -> tuple[int, bool]:
        """Length of the suffix that may be the beginning of a secret, and whether it must not leave yet.

        A few base64 characters at the end of a line need only be remembered: an event may end there. Neither
        must fewer than `enough` characters of anything wait, which tell the kind of a key and no more: a
        message may end with them, and its reader may have to answer before another one comes.
        """
        if not text or (text[-1] not in self._material and text[-1] not in self._inside):
            return 0, False
        if self._ends_for_good(text):
            return 0, False
        return self._held_closely(text, enough)

    def _ends_for_good(self, text: bytes) -> bool:
        """Whether a line ends here after what is in no spelling, as most events do. Then nothing is held."""
        if text[-1] not in _LINE_ENDS or text[-1] in self._inside or has_opener(text):
            return False
        stem = text.rstrip(_BREAK)
        return not stem or stem[-1] not in self._inside

    def _held_closely(self, text: bytes, enough: int) -> tuple[int, bool]:
        """`held` without its short ways."""
        size = matched = self._beginning(text, self._all_texts)
        run = text[self._run_before(text, len(text)) :]
        stem = run.rstrip(_BREAK)
        at_break = b"\n" in run[len(stem) :] or run.endswith(b"\r")
        if not stem or not (at_break or has_escape(run)):
            return size, matched >= enough
        if at_break and stem[-1] not in self._inside and not has_opener(stem):
            return size, matched >= _ENOUGH_OF_A_LINE
        for opened, alone in ((views, False), (all_views, True))[: 1 + self._alike]:
            for view in opened(stem if at_break else run):
                cut = view.trim(alone=alone)
                found = self._beginning(view.text, self._broken if at_break else self._texts)
                if found or cut:
                    size = max(size, len(run) - view.start(len(view.text) - found))
                    matched = max(matched, found)
        if at_break:
            return size, matched >= _ENOUGH_OF_A_LINE
        return size, matched >= enough

    def _untouched_echoes(self, spellings: Sequence[_Spelling]) -> dict[bytes, tuple[int, bytes]]:
        """Windows that need no close reading where the secret stands around them: where in it, and it.

        Only those over which no other spelling can lie at the same time: its own window might be below.
        """
        return {
            window: (before, each.text)
            for each in spellings
            if each.plain and not has_opener(each.text)
            for window in each.windows
            if (before := each.text.find(window)) >= 0
            and not any(_overlies(text, each.text, before, len(window)) for text in self._all_texts)
        }

    def _beginning(self, text: bytes, needles: Sequence[bytes]) -> int:
        """Length of the longest suffix of `text` that is the beginning, and not all, of a needle."""
        tail = text[-self._longest + 1 :] if self._longest > 1 else b""
        match = self._heads.search(tail)
        while match is not None:
            at = match.start()
            rest = tail[at:]
            if any(needle.startswith(rest) and needle != rest for needle in needles):
                return len(rest)
            match = self._heads.search(tail, at + 1)
        return next((size for size in (3, 2, 1) if tail[-size:] in self._short and len(tail) >= size), 0)

    def _read(self, text: bytes, regions: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """The spans that a close reading finds."""
        for start, end in regions:
            for view in (all_views if self._alike else views)(text[start:end]):
                for needle in self._texts:
                    if needle in view.text:
                        for at in _all(view.text, needle):
                            yield start + view.start(at), start + view.end(at + len(needle))

    def _regions(self, text: bytes, suspicions: list[int]) -> Iterator[tuple[int, int]]:
        """Parts of `text` that have to be read closely: the runs of material around suspicious places."""
        start = end = 0
        open_end = False  # the run goes on, it was only not followed further
        reach = self._span
        for at in suspicions:
            if at < end:
                if open_end and at + self._span > end:
                    reach *= 2  # it may be full of them: asking for each would cost more than reading on
                    end, open_end = self._run_after(text, end, at + reach)
                continue
            if end - start >= self._shortest:
                yield start, end
            reach = self._span
            start = self._run_before(text, at)
            end, open_end = self._run_after(text, at, at + reach)
        if end - start >= self._shortest:
            yield start, end

    def _run_before(self, text: bytes, at: int) -> int:
        """Where the run of material that ends at `at` begins, or earlier."""
        near = text[max(0, at - _NEAR) : at]
        rest = near.rstrip(self._material)
        return at - len(near) + len(rest) if rest else max(0, at - self._span)

    def _run_after(self, text: bytes, at: int, limit: int) -> tuple[int, bool]:
        """Where the run of material around `at` ends; `limit` and true if not before that."""
        edge = self._edge.search(text, at, limit)
        return (edge.start(), False) if edge is not None else (min(limit, len(text)), limit < len(text))


@lru_cache(maxsize=16)  # as many credentials as runs have; making one costs a millisecond
def needles(secrets: tuple[bytes, ...], *, folded: bool = False) -> Needles | None:
    """What to look for; None when there is nothing. `folded`: in text that is all lower case."""
    spellings = [spelling for secret in secrets if secret for spelling in _spellings(secret)]
    if not spellings:
        return None
    if folded:
        spellings = [
            replace(each, text=each.text.lower(), windows=_lower(each.windows)) for each in spellings
        ]
    lists = [text for secret in secrets if len(secret) >= _ENCODED_FROM for text in _lists(secret)]
    return Needles(spellings, list(dict.fromkeys(_lower(lists))) if folded else lists)


def _lower(words: Sequence[bytes]) -> tuple[bytes, ...]:
    return tuple(word.lower() for word in words)


def _spellings(secret: bytes) -> Iterator[_Spelling]:
    windows = _windows(secret)
    wide = [
        b"".join(bytes((byte, *bytes(zeros))) for byte in window[:4])
        for window in windows
        for zeros in (1, 3)
    ]
    yield _Spelling(
        secret,
        (*windows, *wide) if windows else (),
        escaped=View(secret).opened() is not None,
        plain=True,
    )
    if b" " in secret:
        form = secret.replace(b" ", b"+")
        yield _Spelling(form, _windows(form))
    if len(secret) >= _ENCODED_FROM:
        for text in _base64(secret):
            yield _Spelling(text, _windows(text), broken=True)
        for text in (secret.hex().encode(), secret.hex().upper().encode()):
            yield _Spelling(text, _windows(text), unit=8)


def _windows(text: bytes) -> tuple[bytes, ...]:
    """Two pieces of letters and digits from the middle: keys of one kind begin alike.

    Next to one another, if possible: a line break is in one of them at most.
    """
    pieces = [
        (match.start() + at, match[0][at : at + _WINDOW])
        for match in _RUN.finditer(text)
        for at in range(0, len(match[0]) - 3, _WINDOW)
    ]
    pieces.sort(key=lambda piece: (-len(piece[1]), abs(2 * piece[0] + _WINDOW - len(text))))
    return tuple(piece for _, piece in pieces[:2])


def _base64(secret: bytes) -> Iterator[bytes]:
    """What is left of the secret in base64 wherever it stands: the characters that it alone decides."""
    for before in range(3):
        text = base64.b64encode(bytes(before) + secret).rstrip(b"=")
        first = (0, 2, 3)[before]
        core = text[first : (before + len(secret)) * 8 // 6]
        yield core
        if b"+" in core or b"/" in core:
            yield core.replace(b"+", b"-").replace(b"/", b"_")


def _lists(secret: bytes) -> Iterator[bytes]:
    """Bytes one by one, as dumps and JSON have them."""
    for mark in (b":", b" "):
        yield secret.hex(mark.decode()).encode()
        yield secret.hex(mark.decode()).upper().encode()
    for mark in (b",", b", "):
        yield mark.join(b"%d" % byte for byte in secret)


def quick_search(words: Sequence[bytes]) -> BytesAhoCorasick:
    """One search for some words as they are, quick on any data. Matches with a higher index are none."""
    return _search((*words, *_DECOYS))


def _search(patterns: tuple[bytes, ...]) -> BytesAhoCorasick:
    from ahocorasick_rs import BytesAhoCorasick, MatchKind

    return BytesAhoCorasick(patterns, matchkind=MatchKind.LeftmostFirst)


@cache
def _escapes() -> tuple[BytesAhoCorasick, ...]:
    return tuple(map(_search, _BEGINNINGS))


@cache
def _rough_escapes() -> BytesAhoCorasick:
    return _search(tuple(_ROUGHLY))


def _is_text(data: bytes) -> bool:
    sample = data[:: len(data) // _SAMPLE + 1]
    return len(sample.translate(None, _NO_TEXT)) * 4 > len(sample) * 3


def _suspects(text: bytes) -> list[int] | None:
    """Where an escape stands for a letter or digit; None: in so many places that all has to be read."""
    starts = _alarms(text) if _is_text(text) else _rough_alarms(text)
    if starts is None:
        return None
    return [start for start in starts if _SUSPECT.match(text, start) is not None]


def _alarms(text: bytes) -> list[int] | None:
    """Where such an escape may begin in what is text."""
    searches = [search for opener, search in zip(OPENERS, _escapes(), strict=True) if opener in text]
    found = [search.find_matches_as_indexes(text) for search in searches]
    if sum(map(len, found)) * _DENSE > len(text):
        return None
    return [start for each in found for _, start, _ in each]


def _rough_alarms(data: bytes) -> list[int] | None:
    """The same in other data. Most are by chance, and the next byte in a set costs a third of `_SUSPECT`."""
    found = _rough_escapes().find_matches_as_indexes(data)
    size, following = len(data), _FOLLOWING
    if len(found) * _DENSE > size:
        return None
    return [start for word, start, end in found if end == size or data[end] in following[word]]


def _overlies(other: bytes, text: bytes, start: int, size: int) -> bool:
    """Whether `other` can stand where it covers a part of `text[start:start + size]` and both can be read."""
    for at in range(start - len(other) + 1, start + size):
        begin, end = max(0, at), min(len(text), at + len(other))
        if text[begin:end] == other[begin - at : end - at] and (at or other != text):
            return True
    return False


def _all(text: bytes, needle: bytes) -> Iterator[int]:
    """Where `needle` stands, overlapping finds included."""
    at = text.find(needle)
    while at >= 0:
        yield at
        at = text.find(needle, at + 1)
