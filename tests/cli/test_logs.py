"""`moat logs`: all of it, the end of it, as it grows, and never the terminal's own."""

from __future__ import annotations

import datetime as dt
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from moat.cli.logs import Text

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


def test_json_draws_on_no_terminal(moat: Moat) -> None:
    """Seen failing with `json.dumps` alone."""
    text = "a\u009b2Jb\u202ec\x7f é"
    moat("run", "--name", "x", "--", "printf", text)
    shown = moat("logs", "--json", "x").stdout
    assert json.loads(shown)["text"] == text
    assert "a\\u009b2Jb\\u202ec\\u007f é" in shown
    assert all(c.isprintable() or c == "\n" for c in moat("list", "--json").stdout)


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


SCRIPT = """
printf 'one '; sleep 0.3; echo problem >&2; sleep 0.1; printf 'line\\n'; sleep 0.3
echo 'second problem' >&2; sleep 0.2; printf 'no end'
"""
STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@pytest.mark.parametrize("runtime", ["embedded", pytest.param("docker", marks=pytest.mark.docker)])
def test_both_streams_are_told_apart_and_lines_have_the_time_at_which_they_began(
    moat: Moat, runtime: str
) -> None:
    before = dt.datetime.now(dt.UTC)
    done = moat("run", "--runtime", runtime, "--name", "x", "--", "sh", "-c", SCRIPT)
    assert (done.stdout, done.stderr) == ("one line\nno end", "problem\nsecond problem\n")
    assert moat("logs", "x").stdout == "one problem\nline\nsecond problem\nno end", "as it came"
    assert moat("logs", "--stdout", "x").stdout == "one line\nno end"
    assert moat("logs", "--stderr", "x").stdout == "problem\nsecond problem\n"
    assert moat("logs", "--stderr", "-n", "1", "x").stdout == "second problem\n"
    stamped = moat("logs", "-t", "x").stdout.splitlines()
    assert [re.sub(STAMP, "T", line) for line in stamped] == [
        "T stderr problem",
        "T stdout one line",
        "T stderr second problem",
        "T stdout no end",
    ]
    told = [json.loads(line) for line in moat("logs", "--json", "x").stdout.splitlines()]
    times = [dt.datetime.fromisoformat(line["time"]) for line in told]
    assert before <= times[1] <= times[0] - dt.timedelta(seconds=0.2), "one line began before the problem"
    assert times[0] <= times[2] - dt.timedelta(seconds=0.2)
    assert times[2] <= dt.datetime.now(dt.UTC)
    assert [line["partial"] for line in told] == [False] * 4
    later = (times[0] + dt.timedelta(seconds=0.15)).isoformat()
    assert moat("logs", "--since", later, "x").stdout == "second problem\nno end"
    assert moat("logs", "--since", "1h", "-n", "1", "x").stdout == "no end\n"
    assert moat("logs", "--since", "yesterday", "x").returncode == 2


def test_following_with_times(moat: Moat, moat_bin: str) -> None:
    moat("run", "--name", "x", "-d", "--", "sh", "-c", "echo a; sleep 0.5; echo b >&2; sleep 1; printf c")
    with subprocess.Popen(
        [moat_bin, "logs", "-ft", "-n", "1", "x"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert re.fullmatch(STAMP + " std(out a|err b)\n", process.stdout.readline()), "at once"
        assert re.sub(STAMP, "T", process.stdout.read()).endswith("T stdout c\n")


def test_a_terminal_has_one_stream(moat: Moat) -> None:
    moat("run", "-d", "-i", "--name", "x", "--", "sh", "-c", "printf '\\033[31mred\\033[0m\\n'; echo bad >&2")
    assert re.sub(STAMP, "T", moat("logs", "-ft", "x").stdout) == "T red\nT bad\n"
    assert moat("logs", "--stderr", "x").returncode == 2


def test_the_newest_output_is_kept(moat: Moat, home: Path) -> None:
    """Seen to fail with a log that ends at its limit."""
    (home / ".moat").mkdir(mode=0o700)
    (home / ".moat/config.yaml").write_text("output: {max_size: 64k}\n")
    moat(
        "run", "--name", "x", "--", "sh", "-c", "seq 20000; sleep 0.1; seq 20001 40000; sleep 0.1; echo last"
    )
    files = list((home / ".moat/runs").glob("*/output.log*"))
    assert len(files) == 4
    done = moat("logs", "x")
    lines = done.stdout.splitlines()
    assert lines[-1] == "last"
    assert lines[1:-1] == [str(n) for n in range(int(lines[1]), 40001)], "without a hole"
    assert re.fullmatch(
        r"moat: \d+ bytes of the output are no longer there \(output.max_size\)\n", done.stderr
    )
    assert moat("logs", "-n", "2", "x").stdout == "40000\nlast\n"
    assert moat("logs", "-n", "2", "x").stderr == ""
