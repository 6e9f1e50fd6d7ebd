"""Real programs in tmux: the menu comes and goes, terminals come and go, and the screen is as it was."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moat.cli import askbar
from moat.cli.display import Display
from moat.cli.session_menu import SessionMenu, keys_of
from moat.cli.verdict import BY_KEY, Decision, Verdict
from moat.paths import Home
from moat.runtime.handle import RunHandle
from tests.cli.test_attach import BOTH, TUI, state
from tests.cli.tmux import Tmux

Moat = Callable[..., subprocess.CompletedProcess[str]]
Open = Callable[..., Tmux]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "workspace"
    path.mkdir(exist_ok=True)
    (path / "tui.py").write_bytes(TUI.read_bytes())
    (path / "agent.yaml").write_text("dependencies: [python]\n")
    (path / "lines").write_text("".join(f"line {n} äöü ✓\n" for n in range(1, 200)))
    return path


@pytest.fixture
def tmux(workspace: Path, runtime_directory: Path) -> Iterator[Open]:
    opened: list[Tmux] = []

    def start(columns: int = 80, rows: int = 24) -> Tmux:
        opened.append(Tmux(runtime_directory / f"tmux{len(opened)}"))
        opened[-1].open(workspace, columns, rows)
        return opened[-1]

    yield start
    for one in opened:
        one.close()


PROGRAMS = {
    "vim": (
        "vim -u NONE -N lines",
        (":set nu mouse=a cul hls", "Enter", "/line 2", "Enter", "x"),
        (":q!", "Enter"),
    ),
    "less": ("less lines", ("Space", "/9", "Enter"), ("q",)),
    "htop": ("htop -d 600", ("F5",), ("F10",)),
    "shell": ("printf '\\033[44mblue\\033[0m'; seq 40", (), ()),
}


def test_every_screen_comes_back(tmux: Open, moat: Moat, moat_bin: str, embedded: None) -> None:
    """After the menu, after coming back to the same window, and at the size of another one.

    Seen failing with `Display.uncover` writing nothing, and without what `full_screen` and `Modes.enter` say.
    """
    window = tmux()
    window.line(f"{moat_bin} run -i --name work -- env PS1='in> ' bash --norc")
    window.prompts("in>")
    for name, (command, keys, leave) in PROGRAMS.items():
        window.line(f"clear; {command}")
        window.keys(*keys, pause=0.2)
        before = window.settled()
        window.keys("C-_")
        window.shows("d  detach")
        window.keys("Escape")
        window.hides("d  detach")
        assert window.settled() == before, f"{name}: after the menu"
        window.keys("C-_", "d")
        window.shows("detached from work")
        window.prompts("host>")
        assert "alternate=0" in window.state
        window.line(f"clear; {moat_bin} attach work")
        if name != "shell":  # its screen begins at the top again
            window.until(lambda: "alternate=1" in window.state)
            assert strip(window.settled()) == strip(before), f"{name}: attached again"
        window.keys(*leave, pause=0.3)
        window.prompts("in>")
    window.line("exit 3")
    window.prompts("host>")
    assert state(moat, "work") == "failed"


def strip(screen: str) -> list[str]:
    """Without the command line of vim, which it wipes when it paints everything."""
    return ["" if line.startswith(("/", ":")) else line for line in screen.splitlines()]


def test_the_menu_answers_for_the_host_that_it_shows(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A sandbox withdraws one question for another just before the key.

    Seen to fail with `_is_asked` looking at `_asked` alone.
    """
    now = 100.0
    monkeypatch.setattr(askbar.time, "monotonic", lambda: now)
    monkeypatch.setenv("TERM", "xterm")
    display = Display(terminal=True, ask_for_screen=lambda: None, repaint=lambda: None, chord="ctrl-/")

    def waits(host: str) -> None:
        nonlocal now
        display.ask([{"host": host, "port": 443, "method": "GET", "path": "/", "requests": 1}])
        now += 1

    def typed(_seconds: float) -> bytes:
        shown.append(capfd.readouterr().out)
        if len(shown) == 1:
            waits("evil.test")
        return b"a"

    shown: list[str] = []
    waits("good.test")
    handle = RunHandle(id="run_000000000000", name="work", socket=Path("none"), tty=True, stdin=True)
    assert SessionMenu(handle, display, typed, read_only=False).run() == Decision(
        "evil.test:443", BY_KEY["a"]
    )
    assert ["a  allow good.test" in shown[0], "a  allow evil.test" in shown[1]] == [True, True]


def test_a_question_that_comes_while_the_file_is_written_is_not_answered(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing takes its time, and a sandbox may ask about another host meanwhile."""
    now = 100.0
    monkeypatch.setattr(askbar.time, "monotonic", lambda: now)
    monkeypatch.setenv("TERM", "xterm")
    display = Display(terminal=True, ask_for_screen=lambda: None, repaint=lambda: None, chord="ctrl-/")

    def waits(host: str) -> None:
        nonlocal now
        display.ask([{"host": host, "port": 443, "method": "GET", "path": "/", "requests": 1}])
        now += 1

    written: list[str] = []

    def slowly(_home: Home, host: str, *, allow: bool) -> None:
        waits("evil.test")
        written.append(host)

    monkeypatch.setattr("moat.config.remember.remember", slowly)
    waits("good.test")
    handle = RunHandle(id="run_000000000000", name="work", socket=Path("none"), tty=True, stdin=True)
    decision = SessionMenu(handle, display, lambda _: b"A", read_only=False).run()
    assert display.bar.chosen == "evil.test:443"
    assert decision == Decision("good.test:443", BY_KEY["A"])
    assert written == ["good.test:443"]


def test_an_answer_for_always_is_in_the_file_or_it_is_none(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(askbar.time, "monotonic", lambda: now)
    monkeypatch.setenv("TERM", "xterm")
    display = Display(terminal=True, ask_for_screen=lambda: None, repaint=lambda: None, chord="ctrl-/")
    display.ask([{"host": "good.test", "port": 443, "method": "GET", "path": "/", "requests": 1}])
    now += 1
    handle = RunHandle(id="run_000000000000", name="work", socket=Path("none"), tty=True, stdin=True)

    def chosen(*keys: bytes) -> object:
        typed = iter(keys)
        return SessionMenu(handle, display, lambda _: next(typed), read_only=False).run()

    file = home / ".moat/config.yaml"
    assert chosen(b"o") == Decision("good.test:443", Verdict(allow=True, scope="once"))
    assert chosen(b"m") == Decision("good.test:443", Verdict(allow=True, scope="for", seconds=600))
    assert not file.exists()
    assert chosen(b"A") == Decision("good.test:443", Verdict(allow=True, scope="always"))
    assert "allow:" in file.read_text()
    assert chosen(b"N") == Decision("good.test:443", Verdict(allow=False, scope="always"))
    assert "deny:" in file.read_text()
    assert "allow:" not in file.read_text()
    file.write_text("ask: [")
    assert chosen(b"A", b"x", b"q") is None, "what could not be kept was not said either"


@pytest.mark.parametrize("runtime", BOTH)
def test_what_the_menu_does(
    tmux: Open, moat: Moat, moat_bin: str, monkeypatch: pytest.MonkeyPatch, *, workspace: Path, runtime: str
) -> None:
    """What it starts imports nothing from the workspace. Seen failing with `python -m moat`: the agent's ran here."""
    monkeypatch.setenv("MOAT_RUNTIME", runtime)
    ran = workspace.parent / "ran"
    (workspace / "moat.py").write_text(f"open({str(ran)!r}, 'w')\n")
    window, other = tmux(80, 24), tmux(80, 24)
    window.line(f"{moat_bin} run -i --name tui -- python3 tui.py")
    window.shows("size 80x24")
    window.keys("C-_")
    window.shows("s  take a snapshot")
    window.keys("s")
    window.shows("snap_")
    window.keys("x", "t")
    window.shows("no request yet")
    assert "d  detac" not in window.text, "the smaller page hides all of the menu"
    window.resize(90, 28)
    window.keys("x", "?")
    window.shows("--steal to take over")
    window.keys("x", "c")  # the chord itself
    window.shows(r"keys '\x1f'")
    window.shows("size 90x28")
    window.keys("C-_", "C-_")
    window.shows(r"keys '\x1f\x1f'")

    other.line(f"{moat_bin} attach --read-only --chord ctrl-g tui")
    other.shows("size 80x24")
    other.keys("C-g")
    other.shows("d  detach")
    assert "stop the run" not in other.text
    window.keys("y")
    other.keys("k", "Escape")
    other.shows(r"keys '\x1f\x1fy'")
    other.keys("C-g", "d")
    other.shows("detached from tui")

    window.keys("C-_")
    window.shows("k  stop the run")
    window.keys("k", "n")
    window.shows("k  stop the run")
    window.keys("k", "y")
    window.prompts("host>")
    window.until(lambda: state(moat, "tui") == "stopped")
    assert "alternate=0" in window.state
    kept = json.loads(moat("snapshot", "list", "--json", "tui").stdout)
    assert [one["label"] for one in kept if one["label"]] == ["from the menu"]
    assert not ran.exists()


SUSPENDS = """
import os, signal, sys, termios, tty
tty.setraw(0)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCONT})
sys.stdout.write("ready\\r\\n"); sys.stdout.flush()
os.read(0, 1)
os.kill(0, signal.SIGTSTP)
signal.sigwait({signal.SIGCONT})
sys.stdout.write("back again\\r\\n"); sys.stdout.flush()
os.read(0, 1)
"""


@pytest.mark.parametrize("runtime", BOTH)
def test_a_program_that_suspends_itself_comes_back(
    tmux: Open, workspace: Path, moat_bin: str, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    """As Claude Code does at Ctrl-Z, where no shell has an `fg` for it; what a shell suspends stays so."""
    monkeypatch.setenv("MOAT_RUNTIME", runtime)
    (workspace / "suspends.py").write_text(SUSPENDS)
    window = tmux()
    window.line(f"{moat_bin} run -i -- python3 suspends.py")
    window.shows("ready")
    window.keys("C-z")
    window.shows("back again")
    window.keys("x")
    window.prompts("host>")
    window.line(f"clear; {moat_bin} run -i -- env PS1='in> ' bash --norc")
    window.prompts("in>")
    window.line("sleep 500")
    time.sleep(0.5)
    window.keys("C-z")
    window.shows("Stopped")
    time.sleep(1)
    window.line("clear; jobs")
    window.shows("Stopped")


def test_output_waits_for_the_menu_and_a_flood_of_it_is_brought_up_to_date(
    tmux: Open, moat_bin: str, embedded: None
) -> None:
    window = tmux()
    window.line(f"{moat_bin} run -i --name work -- env PS1='in> ' bash --norc")
    window.prompts("in>")
    window.line("clear; sleep 2; echo while it was open")
    window.keys("C-_")
    window.shows("d  detach")
    window.keys("", pause=2.5)
    assert "while it" not in window.text
    window.keys("Escape")
    window.shows("while it was open")
    window.line("clear; sleep 2; head -c 5000000 /dev/zero | tr '\\0' x | fold -w 90; echo the end of it")
    window.keys("C-_")
    window.shows("d  detach")
    window.keys("", pause=4)
    window.keys("Escape")
    window.shows("the end of it")
    window.line("exit")


@pytest.mark.parametrize(
    ("typed", "keys"),
    [
        (b"dk", "dk"),
        (b"\x1b", "\x1b"),
        (b"\x1b[27u", "\x1b"),
        (b"\x1b[100u\x1b[100;1:3u\x1b[107;5u", "d"),
        (b"\x1b[A\x1bOA\x1b[1;5C\x1b[I\x1b[O", ""),
        (b"\x1b[<0;10;10M\x1b[Md!!\x1b[?1;2c", ""),
        (b"\x1b[200~k y d\x1b[201~q", "q"),
        (b"\x1b[200~k y d", ""),
        ("ä✓".encode(), ""),
    ],
)
def test_what_is_no_key_chooses_nothing(typed: bytes, keys: str) -> None:
    """Pasted text, mouse, focus and answers of the terminal must not stop a run."""
    assert "".join(keys_of(typed)) == keys
