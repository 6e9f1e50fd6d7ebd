"""The line that asks: it leaves the program's bytes, screen and cursor alone, and what it shows cannot lie.

Seen to fail: without `interruptible` (a sequence is torn apart), without the erase before a piece (the line scrolls
into the text), with the host cut at its end, without `_SETTLED`.
"""

from __future__ import annotations

import re
from typing import Any

import pyte
import pytest

from moat.cli import askbar
from moat.cli.answering import honest
from moat.cli.askbar import AskBar, line, notification
from moat.runtime.screen import Modes
from moat.runtime.size import Size

SIZE = Size(80, 10)
OURS = re.compile(rb"\x1b7\x1b\[10;1H\x1b\[0(?:m\x1b\[2K|;7m[ -~]*\x1b\[0m\x1b\[K)\x1b8|\a")


def asked(host: str, path: str = "/", port: int = 443) -> dict[str, Any]:
    return {"host": host, "port": port, "method": "GET", "path": path, "requests": 1}


class Screen:
    """A terminal that is shown what the bar lets through, and one without the bar."""

    def __init__(self) -> None:
        self.bar, self.modes = AskBar(), Modes()
        self.screen, self.plain = pyte.Screen(80, 10), pyte.Screen(80, 10)
        self._streams = pyte.ByteStream(self.screen), pyte.ByteStream(self.plain)
        self.raw = b""

    def program(self, data: bytes) -> None:
        self._take(self.bar.feed(data, SIZE, self.modes))
        self._streams[1].feed(data)

    def ask(self, *questions: dict[str, Any]) -> None:
        self._take(self.bar.show(questions, SIZE, self.modes, {}))

    def _take(self, data: bytes) -> None:
        self.raw += data
        self._streams[0].feed(data)

    @property
    def last(self) -> str:
        return str(self.screen.display[-1])


def test_the_program_does_not_notice() -> None:
    it = Screen()
    pieces = [
        b"\x1b[?1049h\x1b[2J\x1b[1;1Hhello",
        b"\x1b[31mred\x1b[3",
        b";7Hthere",
        "é€".encode()[:3],
        b"\x82\xac",
        b"x" * 90,
    ]
    it.ask(asked("new.test", "/path"))
    for piece in pieces:
        it.program(piece)
        assert (it.screen.cursor.x, it.screen.cursor.y) == (it.plain.cursor.x, it.plain.cursor.y)
    assert "moat: allow GET new.test/path | ctrl-/ a allow, n deny" in it.last
    assert it.screen.display[:-1] == it.plain.display[:-1]
    assert it.screen.cursor.attrs == it.plain.cursor.attrs, "colours as they were"
    assert OURS.sub(b"", it.raw) == b"".join(pieces), "no byte of the program is altered, none moved"
    it.ask()
    assert it.last.strip() == ""
    it.program(b"more")
    assert it.raw.endswith(b"more")


def test_it_does_not_scroll_into_the_text() -> None:
    it = Screen()
    it.ask(asked("new.test"))
    for number in range(30):
        it.program(f"line {number}\r\n".encode())
    assert "new.test" in it.last
    assert [row for row in it.screen.display if "moat" in row] == [it.last]


def test_it_waits_for_a_program_that_saved_the_cursor() -> None:
    it = Screen()
    it.ask(asked("new.test"))
    it.program(b"\x1b[5;5H\x1b7\x1b[1;1Hthere")
    assert "new.test" not in it.last
    it.program(b"\x1b8back")
    assert "new.test" in it.last
    assert it.screen.display[4].strip() == "back"


@pytest.mark.parametrize("columns", [30, 40, 60, 80, 200])
def test_the_end_of_a_host_is_always_shown(columns: int) -> None:
    host = "login.github.com." + "a" * 60 + "." + "b" * 60 + ".evil.test"
    shown = line([asked(host, "/login.github.com")], columns)
    assert len(shown) <= columns
    assert "vil.test" in shown
    assert "login.github.com" not in shown or columns == 200


def test_nothing_in_it_draws_on_the_terminal() -> None:
    hostile = asked("new.test", "/\x1b]0;x\x07\x9b31m\u202e\u0430/\r\n")
    hostile["method"] = "G\x1b[2JT"
    assert re.fullmatch(r"[ -~]+", line([hostile, asked("b.test")], 120))
    assert "(+1)" in line([hostile, asked("b.test")], 120)
    for environ in ({"TERM": "xterm-kitty"}, {"TERM_PROGRAM": "iTerm.app"}, {"TERM": "foot"}):
        assert re.fullmatch(rb"\a\x1b\](?:99;;|9;|777;)[ -~]+\x1b\\", notification(hostile, environ))
        assert notification(hostile, {**environ, "TMUX": "x"}) == b"\a"
    assert notification(hostile, {"TERM": "linux"}) == b"\a"


def test_an_international_name_says_so() -> None:
    assert honest("xn--pple-43d.com") == "xn--pple-43d.com (international: CYRILLIC and LATIN letters)"
    assert honest("xn--pple-43d.com:8443").endswith("letters)")
    assert honest("apple.com") == "apple.com"
    assert line([asked("xn--pple-43d.com")], 80).count("xn--pple-43d.com") == 1


def test_a_key_means_what_has_been_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(askbar.time, "monotonic", lambda: now)
    it = Screen()
    assert it.bar.chosen is None
    it.ask(asked("a.test"), asked("b.test", port=8443))
    assert it.bar.chosen is None, "it has only just appeared"
    now += 1
    assert it.bar.chosen == "a.test:443"
    it.ask(asked("b.test", port=8443))
    assert it.bar.chosen is None, "it took the other one's place under the finger"
    now += 1
    assert it.bar.chosen == "b.test:8443"


def test_a_key_counts_only_while_the_line_is_on_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that keeps the line away can draw one of its own there, with another host.

    Seen to fail with `visible` always true, and without the new start of the clock in `_draw`.
    """
    now = 100.0
    monkeypatch.setattr(askbar.time, "monotonic", lambda: now)
    for hiding, showing in ((b"\x1b7", b"\x1b8"), (b"\x1b[?2026h", b"\x1b[?2026l")):
        it = Screen()
        it.program(hiding)
        it.ask(asked("evil.test"))
        it.program(b"\x1b[10;1H moat: allow GET good.test")
        now += 1
        assert not it.bar.visible
        it.program(showing)
        assert it.bar.visible
        assert it.bar.chosen is None, "it has only just appeared"
        now += 1
        assert it.bar.chosen == "evil.test:443"
        it.program(hiding)
        assert not it.bar.visible


def test_the_bell_rings_for_a_new_question_only() -> None:
    it = Screen()
    it.ask(asked("a.test"))
    it.ask({**asked("a.test"), "requests": 2})
    it.ask(asked("a.test"), asked("b.test"))
    it.ask(asked("b.test"))
    assert it.raw.count(b"\a") == 2


def test_who_only_watches_is_shown_no_keys() -> None:
    shown = AskBar(chord="").show([asked("a.test")], SIZE, Modes(), {})
    assert b"moat: allow GET a.test/ | `moat approve` answers" in shown


def test_a_small_terminal_is_left_alone() -> None:
    assert AskBar().show([asked("a.test")], Size(20, 2), Modes(), {}) == b"\a"
