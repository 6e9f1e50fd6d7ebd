"""The line that says what Moat is doing: one row, whatever it has to say."""

from __future__ import annotations

import os
import sys

import pexpect
import pyte
import pytest

from moat.cli.output import fitted


@pytest.mark.parametrize("columns", [1, 2, 9, 40, 79, 80, 81])
def test_what_is_fitted_has_room_and_keeps_its_end(columns: int) -> None:
    line = "[15:04:05] GET https://api.example.test/" + "a/very/long/path/" * 3 + "end 404 (12 ms)"
    short = fitted(line, columns)
    assert len(short) == columns
    if columns >= 40:
        assert short.startswith("[15:04:05] GET")
        assert short.endswith("404 (12 ms)")
    assert fitted("short", 5) == "short"


def test_a_long_line_leaves_nothing_behind() -> None:
    """Seen failing without `fitted`: the first row of a line of two stays for ever."""
    screen = pyte.Screen(80, 24)
    program = (
        "import moat.cli.output as o; p = o.Progress(); p.show('building ' + 'x' * 150); p.show('fetching'); "
        "p.clear(); print('the end')"
    )
    child = pexpect.spawn(
        sys.executable, ["-c", program], env=os.environ | {"TERM": "xterm-256color"}, dimensions=(24, 80)
    )
    pyte.ByteStream(screen).feed(child.read())
    assert [line.strip() for line in screen.display if line.strip()] == ["the end"]
