"""What is left switched on in a terminal, and what of old output may be repeated."""

from __future__ import annotations

import pytest

from moat.runtime.screen import Modes, drawing_only, text_only

FULL_SCREEN = b"\x1b[?1049h\x1b[?25l\x1b[?1h\x1b=\x1b[?2004h\x1b[?1000;1006h\x1b[>1u\x1b[>4;2m"
BACK = b"\x1b[>4m\x1b[<u\x1b[?1006l\x1b[?1000l\x1b[?2004l\x1b>\x1b[?1l\x1b[?25h\x1b[?1049l"


@pytest.mark.parametrize("at", range(len(FULL_SCREEN) + 1))
def test_modes_at_every_split(at: int) -> None:
    modes = Modes()
    modes.feed(b"text" + FULL_SCREEN[:at])
    modes.feed(FULL_SCREEN[at:] + b"text")
    assert modes.alternate
    left = modes.leave()
    for undone in (
        b"?1049l",
        b"?25h",
        b"?1l",
        b"\x1b>",
        b"?2004l",
        b"?1000l",
        b"?1006l",
        b"\x1b[<1u",
        b"\x1b[>4m",
    ):
        assert undone in left, undone


def test_entering_makes_the_same_state() -> None:
    modes, other = Modes(), Modes()
    modes.feed(FULL_SCREEN)
    other.feed(modes.enter())
    assert other.enter() == modes.enter() != b""


def test_a_program_that_cleans_up_leaves_nothing_to_do() -> None:
    modes = Modes()
    modes.feed(FULL_SCREEN)
    modes.feed(BACK)
    assert modes.leave() == b""
    assert modes.enter() == b""


def test_a_full_reset_forgets_everything() -> None:
    modes = Modes()
    modes.feed(FULL_SCREEN + b"\x1bc")
    assert modes.leave() == b""


def test_plain_output_needs_nothing() -> None:
    modes = Modes()
    modes.feed(b"\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b[2J\x1b[10;1H")
    assert modes.leave() == b""


def test_an_endless_string_is_not_kept() -> None:
    modes = Modes()
    for _ in range(100):
        modes.feed(b"\x1b]52;c;" + b"A" * 65536)
    assert len(modes._rest) <= 4096 + 1
    modes.feed(b"\x07\x1b[?1049h")
    assert modes.alternate


@pytest.mark.parametrize(
    "question",
    [
        b"\x1b[c",
        b"\x1b[>c",
        b"\x1b[6n",
        b"\x1b[?6n",
        b"\x1b]11;?\x07",
        b"\x1b]10;?\x1b\\",
        b"\x1b[?u",
        b"\x1b[?2026$p",
        b"\x1b[>q",
        b"\x1bP+q544e\x1b\\",
        b"\x1b[18t",
        b"\x1b_Gi=1,a=q\x1b\\",
        b"\x1b[?1049h",
        b"\x1b]52;c;?\x07",
        b"\x1bZ",
    ],
)
def test_old_output_never_asks_or_switches_again(question: bytes) -> None:
    assert drawing_only(b"a" + question + b"b") == b"ab"


def test_drawing_is_repeated() -> None:
    drawing = b"\x1b[1;31mred\x1b[0m\x1b[2;5H\x1b[K\x1b[3A\r\nx\x1b7\x1b8\x1b[s\x1b[u\x1b[2K"
    assert drawing_only(drawing) == drawing


def test_what_was_cleared_stays_cleared() -> None:
    assert drawing_only(b"secret\x1b[2J\x1b[Hnow") == b"\x1b[Hnow"
    assert drawing_only(b"\x1b[?1049hfull screen\x1b[?1049lshell") == b"shell"


def test_a_cut_sequence_at_the_end_is_dropped() -> None:
    assert drawing_only(b"a\x1b[12") == b"a"
    assert drawing_only(b"a\x1b]0;tit") == b"a"


def test_text() -> None:
    assert text_only(b"\x1b[1mbold\x1b[0m\r\nnext\tcolumn\x07\r\n") == b"bold\nnext\tcolumn\n"
    assert text_only("naïve ✓\r\n".encode()) == "naïve ✓\n".encode()
