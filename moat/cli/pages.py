"""A list of names for a person to look through: rows that fit a terminal's width, pages that fit its height.

Nothing is left out: whoever floods a list to hide one of it makes more pages.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterable, Sequence

_INDENT = 16
_LEAST = 16  # columns for a name, however narrow the terminal is
_QUESTION = 40  # columns of the longest one
_RUN = 3  # so many consecutive numbers are told as their ends

Section = tuple[str, Sequence[str], bool]  # label, names, whether each has a row of its own
Row = tuple[str, str]  # label, text


def pages(title: str, sections: Iterable[Section], *, columns: int, rows: int) -> list[list[str]]:
    """The lines of each page, `title` first. With what is asked below it, a page fits into `rows`."""
    width = columns - 1  # some terminals begin a new row after the last column
    head = textwrap.wrap(title, max(width, _LEAST))
    body = [row for section in sections for row in _rows(section, max(width - _INDENT, _LEAST))]
    room = max(1, rows - len(head) - -(-_QUESTION // columns))
    parts = [body[at : at + room] for at in range(0, len(body), room)]
    return [[*head, *_labelled(part)] for part in parts]


def ranges(numbers: Iterable[int]) -> list[str]:
    """In order: `5432`, and `8000-8199` for what is consecutive."""
    found: list[list[int]] = []
    for number in sorted(set(numbers)):
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    told = ([f"{run[0]}-{run[-1]}"] if len(run) >= _RUN else map(str, run) for run in found)
    return [text for texts in told for text in texts]


def _labelled(rows: Sequence[Row]) -> Iterable[str]:
    """A label stands beside its first row, on each page."""
    before = ""
    for label, text in rows:
        yield f"{'' if label == before else f'  {label}':<{_INDENT}}{text}"
        before = label


def _rows(section: Section, width: int) -> Iterable[Row]:
    label, names, apart = section
    if apart:
        return [(label, row) for name in names for row in _cut(name, width)]
    return [(label, row) for row in textwrap.wrap(", ".join(names), width, break_on_hyphens=False)]


def _cut(name: str, width: int) -> Iterable[str]:
    """`name` in rows of that many columns; what goes on is indented, or it would look like another name."""
    row, used = "", 0
    for character in name:
        wide = 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if used + wide > width:
            yield row
            row, used = "  ", 2
        row, used = row + character, used + wide
    yield row
