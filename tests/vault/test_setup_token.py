"""`claude setup-token`: finding the token in real terminal output, and hiding it from the terminal."""

from __future__ import annotations

import os
import pty
import sys
import termios
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moat.config import UpstreamConfig
from moat.vault.setup_token import Acquired, find_token, setup_environment, setup_token

TOKEN = "sk-ant-oat01-" + "AbCd_-9" * 13 + "WXYZ"

# The last output of Claude Code 2.1.330 on a terminal of 220 columns, byte for byte but for the token.
REAL = (
    b"\r\x1b[1C\x1b[1A\x1b[K\r\r\n\x1b[2G\x1b[38;5;114m\xe2\x9c\x94\x1b[4GLong-lived\x1b[15Gauthentication"
    b"\x1b[30Gtoken\x1b[36Gcreated\x1b[39m\r\r\n\r\r\n\x1b[2GYour\x1b[7GOAuth\x1b[13Gtoken\x1b[19G(valid"
    b"\x1b[26Gfor\x1b[30G1\x1b[32Gyear):\r\r\n\r\r\n\x1b[2G\x1b[38;5;220m"
    + TOKEN.encode()
    + b"\x1b[39m\r\r\n\r\r\n\x1b[2G\x1b[38;5;246mStore\x1b[8Gthis\x1b[13Gtoken\x1b[19Gsecurely.\x1b[39m\r\r\n"
    b"\r\r\n\x1b[2G\x1b[38;5;246mUse\x1b[6Gthis\x1b[11Gtoken\x1b[17Gby\x1b[20Gsetting:\x1b[29Gexport\x1b[36G"
    b"CLAUDE_CODE_OAUTH_TOKEN=<token>\x1b[39m\r\r\n\r\r\n\x1b[?25h\x1b[?1004l\x1b[>4m\x1b[<u\x1b[?2004l\x1b7"
)


def test_the_token_in_real_output() -> None:
    found = find_token(REAL)
    assert found is not None
    assert found.reveal() == TOKEN


@pytest.mark.parametrize(
    "output",
    [b"", b"no token", b"sk-ant-oat01-", b"sk-ant-api03-" + b"x" * 90, b"CLAUDE_CODE_OAUTH_TOKEN=<token>"],
)
def test_no_token(output: bytes) -> None:
    assert find_token(output) is None


def test_text_after_the_token_is_not_part_of_it() -> None:
    found = find_token(TOKEN.encode() + b"\x1b[7GStore")
    assert found is not None
    assert found.reveal() == TOKEN


def test_the_environment_of_the_command() -> None:
    """What it needs, and no other secret; variables that would make it skip the login stay out."""
    given = {
        "PATH": "/bin", "HOME": "/h", "TERM": "xterm", "LC_ALL": "C", "XDG_RUNTIME_DIR": "/r", "DISPLAY": ":0",
        "https_proxy": "http://p:1", "NO_PROXY": "x", "NODE_EXTRA_CA_CERTS": "/ca", "COLUMNS": "80",
        "ANTHROPIC_API_KEY": "k", "CLAUDE_CODE_OAUTH_TOKEN": "t", "AWS_SECRET_ACCESS_KEY": "s", "CI": "1",
        "MOAT_PASSPHRASE": "p", "GITHUB_TOKEN": "g", "NO_COLOR": "1",
    }  # fmt: skip
    passed = setup_environment(given, UpstreamConfig())
    assert passed.keys() == {
        "PATH", "HOME", "TERM", "LC_ALL", "XDG_RUNTIME_DIR", "DISPLAY", "https_proxy", "NO_PROXY",
        "NODE_EXTRA_CA_CERTS",
    }  # fmt: skip
    upstream = UpstreamConfig(ca_bundle=Path("/company.pem"), proxy="http://proxy:8080")
    passed = setup_environment(given, upstream)
    assert passed["HTTPS_PROXY"] == "http://proxy:8080"
    assert passed["NODE_EXTRA_CA_CERTS"] == "/company.pem"
    assert "https_proxy" not in passed


class User:
    """A terminal with somebody at it: everything that it is shown is kept."""

    def __init__(self, ours: int, terminal: int) -> None:
        self.ours, self.terminal, self.seen = ours, terminal, b""

    def read(self) -> None:
        while True:
            try:
                data = os.read(self.ours, 65536)
            except OSError:
                return
            self.seen += data

    def wait_for(self, text: bytes) -> None:
        deadline = time.monotonic() + 10
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            time.sleep(0.01)


@contextmanager
def user() -> Iterator[User]:
    ours, terminal = pty.openpty()
    somebody = User(ours, terminal)
    thread = threading.Thread(target=somebody.read)
    thread.start()
    try:
        yield somebody
    finally:
        os.close(terminal)
        thread.join(10)
        os.close(ours)


def run(script: str, somebody: User) -> Acquired:
    return setup_token(
        [sys.executable, "-c", textwrap.dedent(script)],
        environment={"PATH": "/usr/bin:/bin"},
        stdin=somebody.terminal,
        stdout=somebody.terminal,
    )


def test_shown_but_for_the_token_even_in_single_bytes() -> None:
    """Wide terminal for the command, the token in no piece of what the user sees, modes put back."""
    with user() as somebody:
        before = termios.tcgetattr(somebody.terminal)
        got = run(
            f"""
            import os, sys, time
            size = os.get_terminal_size(0)
            print("columns", size.columns, flush=True)
            print("sk-ant-almost sk-ant-oa is shown", flush=True)
            for byte in {TOKEN!r}:
                sys.stdout.write(byte); sys.stdout.flush(); time.sleep(0.002)
            print(" store it", flush=True)
            """,
            somebody,
        )
        somebody.wait_for(b"\x1b[?7h")
        assert termios.tcgetattr(somebody.terminal) == before
    assert got.token is not None
    assert got.token.reveal() == TOKEN
    assert got.status == 0
    columns = int(somebody.seen.split(b"columns ")[1].split()[0])
    assert columns >= 200
    assert b"sk-ant-almost sk-ant-oa is shown" in somebody.seen
    assert b"sk-ant-oat" not in somebody.seen
    assert TOKEN[20:40].encode() not in somebody.seen


def test_typing_reaches_the_command() -> None:
    with user() as somebody:
        threading.Timer(0.5, os.write, (somebody.ours, b"code#state\r")).start()
        got = run("print('got', input())", somebody)
        somebody.wait_for(b"got code#state")
    assert got == Acquired(None, 0)


def test_it_is_not_asked_in_a_workspace() -> None:
    """Claude Code would obey the settings of the project there."""
    with user() as somebody:
        run("import os; print('in', os.getcwd(), 'now')", somebody)
        assert b"in / now" in somebody.seen


def test_the_exit_status_is_told_and_a_token_is_found_in_spite_of_it() -> None:
    with user() as somebody:
        got = run(f"print({TOKEN!r}); raise SystemExit(7)", somebody)
    assert got.status == 7
    assert got.token is not None


@pytest.mark.parametrize("key", [b"\x03", b"\x1b[99;5u"])
def test_control_c_ends_the_command(key: bytes, tmp_path: Path) -> None:
    """Also one that ignores every polite signal."""
    with user() as somebody:
        threading.Timer(0.7, os.write, (somebody.ours, key)).start()
        got = run(
            f"""
            import os, signal, time
            for number in (signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
            time.sleep(60)
            """,
            somebody,
        )
    assert got.interrupted
    assert got.token is None
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_terminal_that_goes_away_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moat.vault.setup_token._GRACE", 0.5)
    ours, terminal = pty.openpty()
    threading.Timer(0.5, os.close, (ours,)).start()
    somebody = User(ours, terminal)
    with pytest.raises(OSError):
        run("import time; time.sleep(1000)", somebody)  # longer than a test may take
    os.close(terminal)
