"""`moat logs`: all of it, the end of it, as it grows, and never the terminal's own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from moat.cli.logs import Text, _last_lines

Moat = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.embedded


@pytest.fixture(autouse=True)
def _embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOAT_RUNTIME", "embedded")


def test_the_newest_run_by_its_start(moat: Moat) -> None:
    moat("run", "--name", "old", "-d", "--", "sh", "-c", "echo first; sleep 1; echo late")
    moat("run", "--name", "new", "--", "echo", "second")
    assert moat("logs").stdout == "second\n"
    assert moat("logs", "-f", "old").stdout == "first\nlate\n"
    assert moat("logs").stdout == "second\n", "the newest is not the one that wrote last"


def test_the_last_lines(moat: Moat) -> None:
    moat("run", "--name", "x", "--", "seq", "100000")
    assert moat("logs", "-n", "3", "x").stdout == "99998\n99999\n100000\n"
    assert moat("logs", "-n", "0", "x").stdout == ""
    assert len(moat("logs", "x").stdout.splitlines()) == 100000


def test_following_until_the_end(moat: Moat, moat_bin: str) -> None:
    moat("run", "--name", "x", "-d", "--", "sh", "-c", "echo a; sleep 0.7; echo b; sleep 0.7; printf c")
    with subprocess.Popen([moat_bin, "logs", "-f", "x"], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"a\n"
        assert process.stdout.read() == b"b\nc"
    assert process.returncode == 0


def test_a_reader_that_leaves(moat: Moat, moat_bin: str, tmp_path: Path) -> None:
    moat("run", "--name", "x", "--", "seq", "1000000")
    done = subprocess.run(
        ["sh", "-c", f"{moat_bin} logs x | head -1"], capture_output=True, text=True, timeout=20
    )
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_bytes_that_are_no_text(moat: Moat, moat_bin: str) -> None:
    moat("run", "--name", "x", "--", "printf", r"\377\000\033[31m", text=False)
    done = subprocess.run([moat_bin, "logs", "x"], capture_output=True)
    assert done.stdout == b"\xff\x00\x1b[31m", "a plain run's output is the command's own"


def test_a_terminal_s_output_is_shown_as_text(moat: Moat, moat_bin: str) -> None:
    script = r"printf '\033[?1049h\033[31mred\033[0m\a\033]0;title\007\nnext\r\n'"
    assert moat("run", "-d", "-i", "--name", "x", "--", "sh", "-c", script).returncode == 0
    assert moat("logs", "-f", "x").stdout == "red\nnext\n"
    raw = subprocess.run([moat_bin, "logs", "--raw", "x"], capture_output=True).stdout
    assert raw == b"\x1b[?1049h\x1b[31mred\x1b[0m\x07\x1b]0;title\x07\r\nnext\r\r\n"


def test_no_such_run(moat: Moat) -> None:
    assert moat("logs").returncode == 2
    done = moat("logs", "nothing")
    assert done.returncode == 2
    assert done.stderr == "moat: error: no run 'nothing'\nmoat: hint: `moat list` shows the runs\n"
    assert moat("logs", "-n", "-1").returncode == 2


@pytest.mark.parametrize("step", [1, 2, 7])
def test_text_in_pieces(step: int) -> None:
    data = b"a\x1b[31mb\x1b]0;t\x07c\r\n\x1b[0md\r\nlast"
    text = Text()
    out = b"".join(text.feed(data[at : at + step]) for at in range(0, len(data), step)) + text.end()
    assert out == b"abc\nd\nlast"


@pytest.mark.parametrize(
    ("data", "count", "rest"),
    [
        (b"", 3, b""),
        (b"a\nb\nc\n", 2, b"b\nc\n"),
        (b"a\nb\nc", 2, b"b\nc"),
        (b"a\nb\n", 9, b"a\nb\n"),
        (b"\n\n\n", 1, b"\n"),
        (b"a\n", 0, b""),
        (b"x" * 70000 + b"\n" + b"y" * 70000 + b"\nz\n", 2, b"y" * 70000 + b"\nz\n"),
    ],
)
def test_where_the_last_lines_begin(tmp_path: Path, data: bytes, count: int, rest: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(data)
    assert data[_last_lines(path, count) :] == rest
