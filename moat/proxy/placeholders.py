"""Finding placeholders in text, also percent-encoded, also when it comes in pieces. Sans-IO."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from moat.proxy.needles import quick_search

_HEAD = 4  # bytes that honest text seldom has in common with a placeholder


class Finder:
    """Looks for some placeholders at once."""

    def __init__(self, placeholders: tuple[bytes, ...], *, percent: bool) -> None:
        """`percent`: any of their bytes may be written as `%41`."""
        self._placeholders = placeholders
        self._percent = percent
        self._search = quick_search(placeholders)
        spelled = [b"(%b)" % _percent_aware(each) for each in placeholders if percent]
        self._pattern = re.compile(b"|".join(spelled))
        starts = [b"%"] if percent else []
        for placeholder in placeholders:
            head = 1 if percent else _HEAD
            starts.append(re.escape(placeholder[:head]))
            starts += [re.escape(placeholder[:size]) + rb"\Z" for size in range(1, head)]
        self._start = re.compile(b"|".join(starts))
        self._longest = max(map(len, placeholders)) * (3 if percent else 1)

    def spans(self, text: bytes) -> Iterator[tuple[int, int, int]]:
        """(which placeholder, from, to), in order."""
        if self._percent and b"%" in text:
            for match in self._pattern.finditer(text):
                assert match.lastindex is not None
                yield match.lastindex - 1, match.start(), match.end()
            return
        for index, start, end in self._search.find_matches_as_indexes(text):
            if index < len(self._placeholders):
                yield index, start, end

    def held(self, text: bytes) -> int:
        """Length of the longest suffix that may be the beginning of a placeholder."""
        end = len(text)
        match = self._start.search(text, max(0, end - self._longest + 1))
        while match is not None:
            at = match.start()
            if any(self._begins(text, at, placeholder) for placeholder in self._placeholders):
                return end - at
            match = self._start.search(text, at + 1)
        return 0

    def _begins(self, text: bytes, at: int, placeholder: bytes) -> bool:
        """Whether `text` from `at` on is the beginning, and not all, of a placeholder."""
        end = len(text)
        for byte in placeholder:
            if at == end:
                return True
            if text[at] == byte:
                at += 1
            elif self._percent and text[at] == 0x25:
                spelling, found = b"%%%02x" % byte, text[at : at + 3].lower()
                if not spelling.startswith(found):
                    return False
                at += len(found)
                if len(found) < 3:
                    return True
            else:
                return False
        return False


finder = lru_cache(maxsize=64)(Finder)
"""The same one for the same placeholders: making it costs a hundred times what using it does."""


def _percent_aware(placeholder: bytes) -> bytes:
    return b"".join(b"(?:%b|%%(?i:%02x))" % (re.escape(bytes((byte,))), byte) for byte in placeholder)
