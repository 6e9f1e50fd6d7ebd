"""Whether a program printed what a document shows.

`…` on a line of its own stands for any lines, or none; within a line for any text. What differs from run to run
needs no mark: ids, hashes, times, moments, durations, dates, ports, and the width of gaps between columns.
"""

from __future__ import annotations

import re

_HEX = "[0-9a-f]"
_CHANGING = {
    rf"\b(run|snap)_{_HEX}{{12}}\b": rf"\w+_{_HEX}{{12}}",
    rf"\b{_HEX}{{8}}(-{_HEX}{{4}}){{3}}-{_HEX}{{12}}\b": rf"{_HEX}{{8}}(-{_HEX}{{4}}){{3}}-{_HEX}{{12}}",
    rf"\b(?=[a-f]*\d)(?=\d*[a-f]){_HEX}{{7,64}}\b": rf"{_HEX}{{7,64}}",
    r"\b\d{4}-\d\d-\d\dT[\d:.]+Z": r"\d{4}-\d\d-\d\dT[\d:.]+Z",
    r"\b\d{4}-\d\d-\d\d\b": r"\d{4}-\d\d-\d\d",
    r"\b\d\d?:\d\d(:\d\d)?\b": r"\d\d?:\d\d(:\d\d)?",
    r"(?<=localhost:)\d+|(?<=127\.0\.0\.1:)\d+": r"\d+",
    r"\b\d+(\.\d+)? ?(ms|s|m|h|d)\b": r"\d+(\.\d+)? ?(ms|s|m|h|d)",
    r" {2,}": " +",
    "…": ".*",
}
_TOKENS = re.compile("|".join(f"(?P<t{number}>{token})" for number, token in enumerate(_CHANGING)))
_PATTERNS = list(_CHANGING.values())


def matches(shown: list[str], printed: list[str]) -> bool:
    """Whether all of `printed` is what is shown. Blank lines at either end do not count."""
    text = "".join(f"{line.rstrip()}\n" for line in _stripped(printed))
    return re.fullmatch("".join(map(_line, _stripped(shown))), text) is not None


def begins(shown: list[str], printed: list[str]) -> bool:
    """Whether a program that goes on has printed what is shown, so far."""
    return matches([*_stripped(shown), "…"], printed)


def _line(line: str) -> str:
    if line.strip() == "…":
        return r"(?:.*\n)*"
    pattern, at = "", 0
    for token in _TOKENS.finditer(line):
        number = next(int(name[1:]) for name, value in token.groupdict().items() if value is not None)
        pattern += re.escape(line[at : token.start()]) + _PATTERNS[number]
        at = token.end()
    return pattern + re.escape(line[at:].rstrip()) + r"[ ]*\n"


def _stripped(lines: list[str]) -> list[str]:
    kept = list(lines)
    while kept and not kept[0].strip():
        kept.pop(0)
    while kept and not kept[-1].strip():
        kept.pop()
    return kept
