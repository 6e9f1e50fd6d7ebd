"""The detach key in every spelling, whole and in pieces, and never a byte lost otherwise."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from moat.chord import parse
from moat.cli.keys import Action, DetachKeys
from moat.errors import UsageError

SPELLINGS = {
    "legacy": b"\x1fd",
    "kitty prefix, plain key": b"\x1b[47;5ud",
    "kitty": b"\x1b[47;5u\x1b[100u",
    "kitty with releases": b"\x1b[47;5:1u\x1b[47;5:3u\x1b[57442;1:3u\x1b[100;1:1u",
    "kitty with alternates and text": b"\x1b[47::47;5u\x1b[100;1;100u",
    "kitty with caps and num lock": b"\x1b[47;197u\x1b[100;193u",
    "modifier goes down in between": b"\x1b[57442;5u\x1b[47;5u\x1b[57442;1:3u\x1b[57441;2u\x1b[100;1u",
}


def feed(data: bytes, step: int) -> tuple[bytes, Action | None]:
    keys = DetachKeys()
    out = b""
    for at in range(0, len(data), step):
        piece, action = keys.feed(data[at : at + step])
        out += piece
        if action:
            return out, action
    return out + keys.flush(), None


@pytest.mark.parametrize("step", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("keys", SPELLINGS.values(), ids=SPELLINGS)
def test_detach(keys: bytes, step: int) -> None:
    out, action = feed(b"ls\r" + keys, step)
    assert action is Action.DETACH
    assert out.startswith(b"ls\r")
    assert b"\x1f" not in out
    assert b"[47" not in out
    assert not out.endswith(b"d")


def test_stop() -> None:
    assert feed(b"\x1fk", 1) == (b"", Action.STOP)
    assert feed(b"\x1b[47;5u\x1b[107u", 3) == (b"", Action.STOP)


@pytest.mark.parametrize(
    "data",
    [
        b"plain text d k /",
        b"\x1b[A\x1b[1;5C\x1bOP\x1b",
        b"\x1b",
        b"\x1b\x1b[100u",
        b"\x1b[47u",
        b"\x1b[47;2u",
        b"\x1b[97;5u",
        b"\x1b[100u",
        b"\x1b[200~pasted\x1b[201~",
        b"\x1fx",
        b"\x1b[47;5ux",
        b"\x1b[47;5u\x1b[97u",
        b"\x1f\x1b[A",
        "naïve ✓".encode(),
        b"\x1b[<0;10;10M",
    ],
)
@pytest.mark.parametrize("step", [1, 2, 100])
def test_everything_else_passes(data: bytes, step: int) -> None:
    assert feed(data, step) == (data, None)


@pytest.mark.parametrize("prefix", [b"\x1f", b"\x1b[47;5u"])
def test_answers_while_something_is_asked(prefix: bytes) -> None:
    for key, action in ((b"a", Action.ALLOW), (b"n", Action.DENY)):
        assert DetachKeys(asked=lambda: True).feed(prefix + key) == (b"", action)
        assert DetachKeys().feed(prefix + key) == (prefix + key, None), "else they are the program's"


def test_what_a_terminal_reports_meanwhile_is_no_key() -> None:
    """The program has asked for it just before: it gets it, and the chord still stands."""
    reports = b"\x1b[2;2R\x1b[>84;0;0c\x1b[?12;2$y\x1b[I"
    assert feed(b"\x1f" + reports + b"d", 100) == (reports, Action.DETACH)


def test_the_chord_as_xterm_spells_it() -> None:
    assert feed(b"\x1b[27;5;47~d", 2) == (b"", Action.DETACH)
    assert feed(b"\x1b[27;5;95~d", 100) == (b"", Action.DETACH)
    assert feed(b"\x1b[27;5;46~d", 1) == (b"\x1b[27;5;46~d", None)


@pytest.mark.parametrize(
    ("name", "typed", "other"),
    [
        ("ctrl-g", b"\x07", b"\x1f"),
        ("Ctrl-]", b"\x1d", b"\x1f"),
        ("ctrl-g", b"\x1b[103;5u", b"\x1b[47;5u"),
        ("ctrl-_", b"\x1f", b"\x07"),
    ],
)
def test_another_chord(name: str, typed: bytes, other: bytes) -> None:
    keys = DetachKeys(parse(name))
    assert keys.feed(other + b"d") == (other + b"d", None)
    assert keys.feed(typed) == (b"", None)
    assert keys.called
    assert keys.feed(b"d") == (b"", Action.DETACH)


def test_no_chord_at_all() -> None:
    data = b"\x1fd\x1b[47;5ud\x00"
    assert DetachKeys(parse("none")).feed(data) == (data, None)


@pytest.mark.parametrize("name", ["ctrl-i", "ctrl-m", "ctrl-[", "alt-x", "ctrl-", "f1", "ctrl-ab", "/"])
def test_what_cannot_be_the_chord(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the key that calls Moat"):
        parse(name)


def test_twice_sends_one() -> None:
    assert feed(b"\x1f\x1fd", 1) == (b"\x1fd", None)


def test_a_lone_escape_is_not_held_back() -> None:
    keys = DetachKeys()
    assert keys.feed(b"\x1b") == (b"\x1b", None)
    assert not keys.holding


def test_a_sequence_that_does_not_go_on_is_let_go() -> None:
    keys = DetachKeys()
    assert keys.feed(b"\x1b[47") == (b"", None)
    assert keys.holding
    assert keys.flush() == b"\x1b[47"
    assert not keys.holding


@given(
    st.lists(st.sampled_from([b"a", b"d", b"\x1b", b"[", b"\x1b[A", b"1", b";", b"u", b"\xff", b"47"])),
    st.integers(1, 9),
)
def test_without_the_prefix_nothing_changes(pieces: list[bytes], step: int) -> None:
    data = b"".join(pieces)
    out, action = feed(data, step)
    if b"47;5" not in data:
        assert (out, action) == (data, None)
