"""A word of Moat's own while a program has the terminal: in the last row for a while, and again afterwards.

Seen to fail with the line written where the cursor is: the program erases it within a second, and half of its own
drawing stays behind. With `_repeat` empty the word is lost with the program's screen.
"""

from __future__ import annotations

import datetime as dt
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pyte
import pytest

from moat.cli import display as display_module
from moat.cli.display import Display
from moat.grants import Credential, CredentialInfo, CredentialKind, Secret
from moat.paths import Home
from moat.runtime import expiry
from moat.runtime.expiry import ExpiryPart
from moat.runtime.size import Size
from moat.vault import open_vault
from moat.vault.expiry import LAST, SOON
from moat.vault.providers import entry
from tests.cli.wizard import Start
from tests.vault.vendor import Vendor, vendor

# Draws as Ink does: erases its lines upwards and draws them anew. Asks a vendor between, and ends at a key.
INLINE = r"""
import os, select, subprocess, sys, tty
tty.setraw(0)
up, n = "", 0
print("before\r")
while True:
    box = ["+------+", f"| {n:<4} |", "+------+"]
    sys.stdout.write(up + "\r\n".join(box)); sys.stdout.flush()
    up = "\x1b[2K\x1b[1A" * 2 + "\x1b[2K\x1b[G"
    if n == 1:
        subprocess.run(["curl", "-sS", "-o", "/dev/null", "https://api.linear.app/x"])
    if select.select([0], [], [], 0.3)[0] and os.read(0, 10) == b"q":
        break
    n += 1
"""
Moat = Callable[..., subprocess.CompletedProcess[str]]
REFUSED = "warning: api.linear.app does not take the credential linear (401): `moat grant linear`"


@pytest.fixture(autouse=True)
def sealed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    monkeypatch.setenv("MOAT_KEY_FILE", str(tmp_path / "key"))


@pytest.fixture
def refusing(home: Path, tmp_path: Path) -> Iterator[Vendor]:
    with vendor(tmp_path / "vendor", lambda _: (401, {}), "api.linear.app") as server:
        server.config(home / ".moat", "api.linear.app")
        yield server


def put(life: dt.timedelta) -> None:
    now = dt.datetime.now(dt.UTC)
    info = CredentialInfo("linear", CredentialKind.TOKEN, entry("linear").hosts, now, now + life)
    open_vault(Home.from_environment()).put(Credential(info, Secret("real-linear")))


@pytest.mark.embedded
@pytest.mark.usefixtures("refusing")
def test_the_program_does_not_notice(start: Start, tmp_path: Path) -> None:
    put(dt.timedelta(days=1))
    project = tmp_path / "project"
    project.mkdir()
    (project / "inline.py").write_text(INLINE)
    run = ("run", str(project), "--runtime", "embedded", "-i", "-g", "linear", "--", "python3", "inline.py")
    terminal = start(*run, size=(24, 120))
    terminal.shows("| 2    |", f" moat: {REFUSED}")
    terminal.shows("| 6    |")
    *drawn, last = terminal.shown().splitlines()
    assert drawn[:4] == ["before", "+------+", "| 6    |", "+------+"]
    assert not any(drawn[4:])
    assert last.strip() == f"moat: {REFUSED}"
    terminal.types("q")
    terminal.sees(f"moat: {REFUSED} (told at ")
    terminal.ends()
    lines = terminal.shown().splitlines()
    assert lines[0] == "before"
    assert lines[3] == "+------+"
    assert lines[4].startswith(f"moat: {REFUSED} (told at ")
    assert not any(lines[6:]), lines


@pytest.mark.embedded
@pytest.mark.usefixtures("refusing")
def test_what_nobody_heard_is_told_to_the_next_one_once(start: Start, moat: Moat, tmp_path: Path) -> None:
    """Seen failing with a `Session.tell` that keeps nothing, and with an `Unheard.take` that keeps all."""
    put(dt.timedelta(days=1))
    project = tmp_path / "project"
    project.mkdir()
    (project / "inline.py").write_text(INLINE)
    run = ("run", str(project), "-d", "--runtime", "embedded", "-i", "--name", "x", "-g", "linear")
    assert moat(*run, "--", "python3", "inline.py").returncode == 0
    deadline = time.monotonic() + 20
    while "grant.rejected" not in moat("audit", "x").stdout:
        assert time.monotonic() < deadline
    for heard in (True, False):
        terminal = start("attach", "x", size=(24, 160))
        terminal.shows("| ", "+------+")
        if heard:
            terminal.shows(f" moat: {REFUSED} (", "nobody was attached)")
            terminal.types("\x1f")
            terminal.types("d")
            terminal.sees("nobody was attached) (told at ")
        else:
            terminal.types("q")
        terminal.ends()
        assert ("nobody was attached" in terminal.raw.decode(errors="replace")) is heard


class Screen:
    """A display whose terminal is looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.screen = pyte.Screen(60, 10)
        stream = pyte.ByteStream(self.screen)
        self.repainted = threading.Event()
        monkeypatch.setattr(display_module, "write", lambda _fd, data: stream.feed(bytes(data)))
        monkeypatch.setattr(display_module, "size", lambda: Size(60, 10))
        monkeypatch.setenv("TERM", "xterm")
        self.display = Display(
            terminal=True, ask_for_screen=lambda: None, repaint=self.repainted.set, chord="ctrl-/"
        )

    @property
    def last(self) -> str:
        return str(self.screen.display[-1]).rstrip()


def test_it_goes_away_and_the_program_paints_what_was_under_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display_module, "_SHOWN", 0.3)
    it = Screen(monkeypatch)
    it.display.output(b"\x1b[?1049h\x1b[1;1Hhello")
    it.display.say("one")
    it.display.say("two: \u00e4 " + "x" * 80)
    assert it.last == " moat: two: \\xe4 " + "x" * 39 + ".."
    assert (it.screen.cursor.x, it.screen.cursor.y) == (5, 0)
    assert it.repainted.wait(10)
    assert it.last == ""
    assert list(it.display.notes) == ["one", "two: \u00e4 " + "x" * 80]


def test_a_question_goes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Screen(monkeypatch)
    it.display.output(b"hello")
    it.display.say("a word")
    question = {"host": "new.test", "port": 443, "method": "GET", "path": "/", "requests": 1}
    it.display.ask([question])
    assert "new.test" in it.last
    assert it.display.bar.visible
    it.display.ask([])
    assert (it.last, it.display.bar.visible) == (" moat: a word", False)
    it.display.close()
    assert it.last == ""


def test_an_end_is_told_twice_before_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not what was near when the run began: the command that started it has told."""
    monkeypatch.setattr(expiry, "_LOOK", 0.1)
    told: list[str] = []
    recorded: list[Any] = []
    watching: list[Callable[[], Any]] = []
    run = SimpleNamespace(
        request=SimpleNamespace(grants=("linear", "vercel")),
        vault=open_vault(Home.from_environment()),
        journal=SimpleNamespace(record=lambda event, **data: recorded.append((event, data["grant"]))),
        tell=told.append,
        start=lambda _name, watch: watching.append(watch),
    )

    async def until(count: int) -> None:
        with anyio.fail_after(20):
            while len(recorded) < count:
                await anyio.sleep(0.02)

    async def scenario() -> None:
        part = ExpiryPart()
        await part.prepare(run)
        await part.started()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watching[0])
            await until(1)
            assert told == []
            put(SOON + dt.timedelta(seconds=1))  # granted anew, and near again
            await until(2)
            assert told == ["warning: the credential linear ends in 15 min: `moat grant linear`"]
            put(LAST)
            await until(3)
            await anyio.sleep(0.3)
            assert told[1:] == ["warning: the credential linear ends in 3 min: `moat grant linear`"]
            tasks.cancel_scope.cancel()

    put(SOON - dt.timedelta(minutes=5))
    anyio.run(scenario)
    assert recorded == [("grant.ending", "linear")] * 3
