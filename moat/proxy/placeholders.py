"""Finding placeholders in text, also percent-encoded, also when it comes in pieces. Sans-IO."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence


class Finder:
    """Looks for some placeholders at once."""

    def __init__(self, placeholders: Sequence[bytes], *, percent: bool) -> None:
        """`percent`: any of their bytes may be written as `%41`."""
        self._placeholders = tuple(placeholders)
        self._percent = percent
        spell: Callable[[bytes], bytes] = _percent_aware if percent else re.escape
        self._pattern = re.compile(b"|".join(b"(%b)" % spell(placeholder) for placeholder in placeholders))
        firsts = b"".join(re.escape(placeholder[:1]) for placeholder in placeholders)
        self._start = re.compile(b"[%b%b]" % (firsts, b"%" if percent else b""))
        self._longest = max(map(len, placeholders)) * (3 if percent else 1)

    def spans(self, text: bytes) -> Iterator[tuple[int, int, int]]:
        """(which placeholder, from, to), in order."""
        if not self._possible(text):
            return
        for match in self._pattern.finditer(text):
            assert match.lastindex is not None
            yield match.lastindex - 1, match.start(), match.end()

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

    def _possible(self, text: bytes) -> bool:
        for placeholder in self._placeholders:  # ten times quicker than the pattern
            if placeholder in text:
                return True
        return self._percent and b"%" in text

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


def _percent_aware(placeholder: bytes) -> bytes:
    return b"".join(b"(?:%b|%%(?i:%02x))" % (re.escape(bytes((byte,))), byte) for byte in placeholder)
