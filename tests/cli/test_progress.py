"""The line that says what Moat is doing: one row, whatever it has to say."""

from __future__ import annotations

import os
import sys

import pexpect
import pyte
import pytest

from moat.cli.output import Progress, fail, fitted
from moat.errors import StartError


@pytest.mark.parametrize("columns", [1, 2, 9, 40, 79, 80, 81])
def test_what_is_fitted_has_room_and_keeps_its_end(columns: int) -> None:
    line = "[15:04:05] GET https://api.example.test/" + "a/very/long/path/" * 3 + "end 404 (12 ms)"
    short = fitted(line, columns)
    assert len(short) == columns
    if columns >= 40:
        assert short.startswith("[15:04:05] GET")
        assert short.endswith("404 (12 ms)")
    assert fitted("short", 5) == "short"


def test_nothing_that_is_said_draws_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """The end of an image's build is a stranger's, who could set the title or fill the clipboard."""
    fail(StartError("it failed:\n  A\x1b]0;title\x07B\x9b1m\u202e\tä\xa0", hint="\x1b[2J"))
    said = capsys.readouterr().err
    assert said == (
        "moat: error: it failed:\nmoat: error:   A\\x1b]0;title\\x07B\\x9b1m\\x202e\tä\xa0\nmoat: hint: \\x1b[2J\n"
    )


def test_progress_draws_nothing_but_its_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    Progress().show("Step 3: \x1b]52;c;aGk=\x07")
    assert capsys.readouterr().err == "\r\x1b[2KStep 3: \\x1b]52;c;aGk=\\x07"


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
