"""Terminals: size before start, keys, detach, attach with a redraw, several viewers, and a clean way out.

The terminals are real (pexpect), their screens are read with pyte.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pyte
import pytest

from moat.runtime import control

Moat = Callable[..., subprocess.CompletedProcess[str]]
BOTH = [
    pytest.param("embedded", marks=pytest.mark.embedded),
    pytest.param("docker", marks=pytest.mark.docker),
]
TUI = Path(__file__).with_name("tui.py")
CLEAN = re.compile(rb"\x1b\[\?1049l")


class Terminal:
    """A user's terminal with `moat` in it."""

    def __init__(self, argv: list[str], cwd: Path, columns: int = 80, rows: int = 24) -> None:
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.child = pexpect.spawn(argv[0], argv[1:], cwd=cwd, dimensions=(rows, columns), timeout=10)
        self.modes = termios.tcgetattr(self.child.child_fd)

    def pump(self, seconds: float = 0.05) -> bool:
        """Take in what has come. False at the end."""
        try:
            data = self.child.read_nonblocking(65536, timeout=seconds)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += data
        self._stream.feed(data)
        return True

    def until(self, condition: Callable[[], Any], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "\n".join(self.screen.display) + repr(self.raw[-500:])
            self.pump()

    def shows(self, text: str) -> None:
        self.until(lambda: any(text in line for line in self.screen.display))

    def type(self, data: bytes) -> None:
        self.child.send(data)

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(rows, columns)
        self.child.setwinsize(rows, columns)

    def end(self) -> int:
        """Wait for `moat` to end; its exit status. The terminal must be as it was before."""
        deadline = time.monotonic() + 20
        while self.pump():
            assert time.monotonic() < deadline, self.raw[-500:]
        self.child.wait()
        return int(-self.child.signalstatus if self.child.signalstatus else self.child.exitstatus)

    def close(self) -> None:
        self.child.close(force=True)


Open = Callable[..., Terminal]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "workspace"
    path.mkdir(exist_ok=True)
    (path / "tui.py").write_bytes(TUI.read_bytes())
    (path / "agent.yaml").write_text("dependencies: [python]\n")
    return path


@pytest.fixture
def terminal(moat_bin: str, workspace: Path) -> Iterator[Open]:
    opened: list[Terminal] = []

    def start(*argv: str, **size: int) -> Terminal:
        opened.append(Terminal([moat_bin, *argv], workspace, **size))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


@pytest.fixture(params=BOTH)
def runtime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MOAT_RUNTIME", request.param)
    return str(request.param)


def state(moat: Moat, name: str) -> str:
    return next(run["state"] for run in json.loads(moat("list", "--json").stdout) if run["name"] == name)


def test_a_session_with_detach_and_attach(terminal: Open, moat: Moat, runtime: str) -> None:
    first = terminal("run", "-i", "--name", "tui", "--", "python3", "tui.py", columns=91, rows=33)
    first.shows("size 91x33")
    first.type(b"\x10\x03")
    first.shows(r"keys '\x10\x03'")
    first.resize(100, 30)
    first.shows("size 100x30")
    first.type(b"\x1fd")
    assert first.end() == 0
    assert b"detached from tui" in first.raw
    for undone in (b"\x1b[?1049l", b"\x1b[?25h", b"\x1b[?2004l", b"\x1b[?1000l"):
        assert undone in first.raw, "the user's terminal is back to normal"
    assert state(moat, "tui") == "running"

    second = terminal("attach", "tui", columns=132, rows=40)
    second.shows("size 132x40")
    second.shows(r"keys '\x10\x03'")
    assert b"\x1b[?1049h" in second.raw
    assert b"\x1b[?2004h" in second.raw, "modes that were switched on before"

    third = terminal("attach", "tui", columns=70, rows=50)
    third.shows("size 70x40")
    second.shows("size 70x40")
    third.type(b"x")
    second.shows(r"keys '\x10\x03x'")
    third.type(b"\x1b[47;5u\x1b[100u")
    assert third.end() == 0
    second.shows("size 132x40")
    second.type(b"q")
    assert second.end() == 0
    assert state(moat, "tui") == "stopped"


def test_a_program_that_does_not_clean_up(terminal: Open, embedded: None) -> None:
    session = terminal("run", "-i", "--", "python3", "tui.py")
    session.shows("size 80x24")
    session.type(b"!")
    assert session.end() == 7
    assert len(CLEAN.findall(session.raw)) == 1
    assert b"\x1b[?1000l" in session.raw


def test_the_stop_key(terminal: Open, moat: Moat, embedded: None) -> None:
    session = terminal("run", "-i", "--name", "tui", "--", "python3", "tui.py")
    session.shows("size 80x24")
    session.type(b"\x1fk")
    assert session.end() == 143
    assert state(moat, "tui") == "stopped"


def test_a_shell_that_ignores_sigterm_is_stopped_by_hanging_up(
    terminal: Open, moat: Moat, embedded: None
) -> None:
    session = terminal("run", "-i", "--name", "sh", "--", "bash", "--norc", "-i")
    session.type(b"echo $((40+2))\r")
    session.shows("42")
    began = time.monotonic()
    assert moat("stop", "sh").returncode == 0
    assert time.monotonic() - began < 6
    assert session.end() == 129


def test_job_control_and_interrupt(terminal: Open, runtime: str) -> None:
    session = terminal("run", "-i", "--", "bash", "--norc", "-i")
    session.shows("bash-")
    session.type(b"sleep 100\r")
    session.shows("sleep 100")
    time.sleep(0.5)
    session.type(b"\x1a")
    session.shows("Stopped")
    session.type(b"fg\r")
    time.sleep(0.5)
    session.type(b"\x03")
    time.sleep(0.3)
    session.type(b"echo status $?; exit 5\r")
    session.shows("status 130")
    assert session.end() == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_closed_terminal_detaches(
    terminal: Open, moat: Moat, embedded: None, number: signal.Signals
) -> None:
    session = terminal("run", "-i", "--name", "tui", "--", "python3", "tui.py")
    session.shows("size 80x24")
    session.child.kill(number)
    assert session.end() == 0
    assert CLEAN.search(session.raw)
    assert state(moat, "tui") == "running"


def test_the_terminal_is_cooked_again(moat_bin: str, workspace: Path, embedded: None) -> None:
    """A shell around `moat` sees the same settings before and after, detached or ended."""
    shell = Terminal(["bash", "--norc"], workspace)
    try:
        shell.type(
            f"PS1=; stty -g; {moat_bin} run -i -- sh -c 'exit 3'; echo status=$?; stty -g; exit\r".encode()
        )
        shell.until(lambda: b"status=3" in shell.raw)
        shell.end()
        settings = re.findall(rb"[0-9a-f]+(?::[0-9a-f]+){10,}", shell.raw)
        assert len(settings) == 2
        assert settings[0] == settings[1]
    finally:
        shell.close()


def test_a_shell_s_last_lines_are_shown_again(terminal: Open, embedded: None) -> None:
    first = terminal("run", "-i", "--name", "sh", "--", "bash", "--norc", "-i")
    first.type(b"echo before-$((1+1))\r")
    first.shows("before-2")
    first.type(b"\x1fd")
    assert first.end() == 0
    second = terminal("attach", "sh")
    second.shows("before-2")
    second.type(b"exit 4\r")
    assert second.end() == 4


def test_started_in_the_background(terminal: Open, moat: Moat, runtime: str) -> None:
    assert moat("run", "-d", "-i", "--name", "tui", "--", "python3", "tui.py").returncode == 0
    session = terminal("attach", columns=99, rows=22)
    session.shows("size 99x22")
    session.type(b"q")
    assert session.end() == 0


def test_watching_and_taking_over(terminal: Open, moat: Moat, runtime: str) -> None:
    """A watcher changes nothing but the size; whoever takes over is alone, and the one before can come back."""
    first = terminal("run", "-i", "--name", "tui", "--", "python3", "tui.py", columns=91, rows=33)
    first.shows("size 91x33")
    watcher = terminal("attach", "--read-only", "tui", columns=80, rows=30)
    watcher.shows("size 80x30")
    watcher.type(b"typed by who only watches")
    first.type(b"x")
    watcher.shows("keys 'x'")
    watcher.type(b"\x03")
    assert watcher.end() == 0
    first.shows("size 91x33")

    second = terminal("attach", "--steal", "tui", columns=132, rows=40)
    assert first.end() == 0
    assert b"another terminal took this run over" in first.raw
    second.shows("size 132x40")
    second.type(b"y")
    second.shows("keys 'xy'")
    again = terminal("attach", "tui", columns=60, rows=20)
    again.shows("size 60x20")
    again.type(b"q")
    assert (again.end(), second.end()) == (0, 0)
    assert state(moat, "tui") == "stopped"


def test_a_watcher_s_orders_are_refused_by_the_run_itself(
    moat: Moat, home: Path, workspace: Path, embedded: None
) -> None:
    """Seen failing with the check in `ControlServer._orders` removed."""
    moat("run", "-d", "-i", "--name", "tui", "--", "python3", "tui.py")
    (path,) = (home / ".moat/runs").glob("*/run.json")
    with control.Connection(
        json.loads(path.read_text())["socket"], "view", read_only=True, timeout=5
    ) as watcher:
        watcher.send(control.pack(control.Frame.SIGNAL, bytes([signal.SIGKILL])))
        while watcher.receive() is not None:
            pass
    assert state(moat, "tui") == "running"


class TestPlainRuns:
    def test_attach_shows_the_end_and_follows(self, moat: Moat, moat_bin: str, embedded: None) -> None:
        script = "echo before; echo err >&2; while ! test -e go; do sleep 0.05; done; echo after; exit 6"
        moat("run", "-d", "--name", "plain", "--", "sh", "-c", script)
        time.sleep(0.5)
        with subprocess.Popen(
            [moat_bin, "attach", "plain"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        ) as process:
            assert process.stdout
            assert process.stderr
            assert process.stdout.readline() == b"before\n"
            moat("run", "--", "touch", "go")
            assert process.stdout.read() == b"after\n"
            assert process.stderr.read() == b"err\n"
        assert process.returncode == 6

    def test_interrupt_leaves_and_twice_stops(self, moat: Moat, moat_bin: str, embedded: None) -> None:
        moat("run", "-d", "--name", "plain", "--", "sh", "-c", "echo ready; exec sleep 100")
        for times, status, after in ((1, 0, "running"), (2, 143, "stopped")):
            with subprocess.Popen(
                [moat_bin, "attach", "plain"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
            ) as process:
                assert process.stdout
                assert process.stdout.readline() == b"ready\n"
                for _ in range(times):
                    process.send_signal(signal.SIGINT)
                    time.sleep(0.1)
                assert process.wait(timeout=20) == status
            assert state(moat, "plain") == after

    def test_nothing_to_attach_to(self, moat: Moat, embedded: None) -> None:
        done = moat("attach")
        assert (done.returncode, done.stderr.splitlines()[0]) == (2, "moat: error: no run is running")
        moat("run", "--name", "over", "--", "true")
        done = moat("attach", "over")
        assert done.returncode == 3
        assert "has ended" in done.stderr
        assert moat("attach", "nothing").returncode == 2

    def test_several(self, terminal: Open, moat: Moat, embedded: None) -> None:
        for name in ("one", "two"):
            moat("run", "-d", "--name", name, "--", "sh", "-c", f"echo I am {name}; sleep 100")
        done = moat("attach")
        assert done.returncode == 2
        assert "one" in done.stderr
        assert "two" in done.stderr
        session = terminal("attach")
        session.shows("Attach to")
        session.shows("I am one")  # the last line of its output
        session.type(b"one\r")
        session.until(lambda: b"attached to one" in session.raw)
        session.type(b"\x03")
        assert session.end() == 0

    def test_only_a_terminal_can_be_taken_over(self, moat: Moat, embedded: None) -> None:
        moat("run", "-d", "--name", "plain", "--", "sleep", "100")
        done = moat("attach", "--steal", "plain")
        assert (done.returncode, done.stderr.splitlines()[0]) == (
            2,
            "moat: error: plain has no terminal to take over",
        )

    def test_a_killed_supervisor_is_told(self, moat: Moat, moat_bin: str, embedded: None) -> None:
        moat("run", "-d", "--name", "plain", "--", "sh", "-c", "echo ready; sleep 100")
        (run,) = json.loads(moat("list", "--json").stdout)
        with subprocess.Popen(
            [moat_bin, "attach", "plain"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        ) as process:
            assert process.stdout
            assert process.stderr
            assert process.stdout.readline() == b"ready\n"
            os.kill(run["pid"], signal.SIGKILL)
            assert b"lost the connection to plain: its supervisor was killed" in process.stderr.read()
        assert process.returncode == 3
