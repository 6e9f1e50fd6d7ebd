"""One session from every kind of place: a dumb terminal, ssh, and no terminal; tmux is in `test_session_menu`.

The program reads lines, as a shell without line editing does: an end of file, however it comes, ends it.
Seen failing with `_ends_input` always true: whoever leaves ends the program. With `Display.left` and `Progress` blind to
`dumb`: sequences on the dumb terminal.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_attach import Terminal, runtime, state
from tests.ssh.world import USER, make_key, sshd

__all__ = ["runtime"]
Moat = Callable[..., subprocess.CompletedProcess[str]]
PIPES: dict[str, Any] = {"stdin": -1, "stdout": -1, "stderr": -1, "start_new_session": True}
PROGRAM = r"""
ask() {  # in bash alone: no image has to be built
    proxy=${HTTP_PROXY#http://}
    exec 3<>"/dev/tcp/${proxy%:*}/${proxy#*:}"
    printf 'GET http://asked.test/ HTTP/1.1\r\nHost: asked.test\r\nConnection: close\r\n\r\n' >&3
    read -r answer <&3
}
echo "on a $TERM terminal"
while read word; do
    case $word in
        size) stty size ;;
        fetch) ask; echo ' fetched' ;;
        bye) exit 4 ;;
        *) echo "[$word]" ;;
    esac
done
"""


@pytest.fixture
def ssh(workspace: Path, tmp_path: Path, moat_bin: str) -> Iterator[Callable[..., list[str]]]:
    """`ssh("attach", "x", terminal=True)`: the command that logs in to this machine and starts moat there."""
    key = make_key(tmp_path / "key")
    options = ["StrictHostKeyChecking=no", f"UserKnownHostsFile={tmp_path}/known", "LogLevel=ERROR"]
    kept = ("MOAT_HOME", "MOAT_RUNTIME", "PATH")  # an environment of its own otherwise, as sshd makes it
    with sshd("localhost", tmp_path / "server", [key]) as server:

        def command(*argv: str, terminal: bool = False) -> list[str]:
            there = ["env", *(f"{name}={os.environ[name]}" for name in kept), moat_bin, *argv]
            return [
                *("ssh", "-F", "none", "-i", str(key), "-p", str(server.port), "-tt" if terminal else "-T"),
                *(part for option in options for part in ("-o", option)),
                f"{USER}@127.0.0.1",
                f"cd {shlex.quote(str(workspace))} && {shlex.join(there)}",
            ]

        yield command


def piped(argv: list[str], text: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        argv, input=text, capture_output=True, timeout=60, start_new_session=True, check=False
    )


def test_one_session_from_everywhere(
    moat: Moat, moat_bin: str, workspace: Path, ssh: Callable[..., list[str]], runtime: str
) -> None:
    _on_a_dumb_terminal(moat, moat_bin, workspace)
    assert state(moat, "work") == "running"
    _without_a_terminal(moat_bin)
    assert state(moat, "work") == "running"
    _over_ssh(moat, workspace, ssh)
    assert state(moat, "work") == "failed"


def _on_a_dumb_terminal(moat: Moat, moat_bin: str, workspace: Path) -> None:
    def start(*argv: str) -> Terminal:
        return Terminal(["env", "TERM=dumb", moat_bin, *argv], workspace)

    first = start("run", "-i", "--ask", "--name", "work", "--", "bash", "-c", PROGRAM)
    first.shows("on a dumb terminal")
    first.type(b"one\r")
    first.shows("[one]")
    first.type(b"fetch\r")
    first.shows("GET asked.test:80/ waits for you: `moat approve work asked.test:80`")
    assert moat("deny", "work", "asked.test:80").returncode == 0
    first.shows(" fetched")
    first.type(b"\x1f")
    first.shows("d detaches, k stops the run")
    first.type(b"d")
    assert first.end() == 0
    assert b"detached from work" in first.raw
    second = start("attach")
    second.shows("[one]")
    second.child.kill(signal.SIGHUP)
    assert second.end() == 0
    assert start("top").end() == 2
    for terminal in (first, second):
        assert b"\x1b" not in terminal.raw


def _without_a_terminal(moat_bin: str) -> None:
    with subprocess.Popen([moat_bin, "attach", "work"], **PIPES) as watching:
        assert watching.stdin
        assert watching.stdout
        watching.stdin.write(b"two\n")
        watching.stdin.close()
        seen = b""
        while b"[two]" not in seen and (line := watching.stdout.readline()):
            seen += line
        watching.terminate()
        assert watching.stderr
        rest, said = watching.stdout.read(), watching.stderr.read()
    assert b"[two]" in seen
    assert b"detached from work" in said
    assert b"\x1b" not in seen + rest + said


def _over_ssh(moat: Moat, workspace: Path, ssh: Callable[..., list[str]]) -> None:
    first = Terminal(ssh("attach", "work", terminal=True), workspace)
    first.shows("[two]")
    first.type(b"size\r")
    first.shows("24 80")
    first.resize(100, 30)
    first.until(lambda: _says(first, b"size\r", "30 100"))
    first.type(b"\x1f")
    first.shows("s  take a snapshot")
    first.type(b"q")
    first.type(b"three\r")
    first.shows("[three]")
    first.type(b"\x1fd")
    assert first.end() == 0
    second = Terminal(ssh("attach", "work", terminal=True), workspace)
    second.shows("[three]")
    second.child.kill(signal.SIGKILL)  # the connection is lost
    second.close()
    third = Terminal(ssh("attach", "--steal", "work", terminal=True), workspace)
    third.type(b"four\r")
    third.shows("[four]")
    assert state(moat, "work") == "running"
    third.type(b"bye\r")
    assert third.end() == 4
    # Nothing of a run in the background holds the connection open.
    done = piped(ssh("run", "-d", "--name", "behind", "--", "sleep", "600"), b"")
    assert (done.returncode, done.stdout[:4]) == (0, b"run_")
    done = piped(ssh("run", "--", "sh", "-c", "cat; echo err >&2; exit 5"), b"in\n")
    assert (done.returncode, done.stdout, done.stderr) == (5, b"in\n", b"err\n")


def _says(terminal: Terminal, typed: bytes, text: str) -> bool:
    """The new size takes a moment to arrive: ask again."""
    terminal.type(typed)
    terminal.pump(0.3)
    return any(text in line for line in terminal.screen.display)
