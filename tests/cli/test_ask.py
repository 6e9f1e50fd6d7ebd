"""Asking as a user meets it: a line on the screen and two keys, other terminals, silence, `always`.

Seen to fail: with `Session.ask` not repainting, what the line covered stays blank; without both `tcflush` and `_SETTLED` of
`askline`, what was typed before is an answer.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moat.cli import answering, main
from moat.errors import MoatError
from moat.runtime import control
from moat.runtime.records import RunRecord
from tests.cli.test_attach import BOTH, Moat, Open, Terminal, terminal, workspace

__all__ = ["terminal", "workspace"]
FULL = """
import threading, urllib.error, urllib.request
def fetch():
    for line in open("hosts"):
        try:
            urllib.request.urlopen(line.strip(), timeout=30)
        except urllib.error.HTTPError as error:
            open("answers", "a").write(error.read().decode() + "\\n")
threading.Thread(target=fetch, daemon=True).start()
exec(open("tui.py").read().replace("size {size.columns}", "\\\\x1b[{size.lines};1HBOTTOM\\\\x1b[1;1Hsize {size.columns}"))
"""


def hosts(workspace: Path, *urls: str) -> None:
    (workspace / "hosts").write_text("".join(f"{url}\n" for url in urls))
    (workspace / "full.py").write_text(FULL)


def answers(workspace: Path, count: int) -> list[str]:
    deadline = time.monotonic() + 20
    while (
        not (workspace / "answers").exists()
        or len(lines := (workspace / "answers").read_text().split("\n\n")) <= count
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return lines


@pytest.mark.parametrize("runtime", BOTH)
def test_a_line_on_the_screen_and_two_keys(terminal: Open, workspace: Path, moat: Moat, runtime: str) -> None:
    hosts(workspace, "https://first.test/a", "https://xn--pple-43d.test/b")
    it: Terminal = terminal(
        "run", "-i", "--ask", "--runtime", runtime, "--name", "q", "--", "python3", "full.py"
    )
    it.shows("moat: allow GET first.test/a | ctrl-/ a allow, n deny")
    assert it.screen.display[0].startswith("size 80x24"), "the program's screen is as it was"
    assert "BOTTOM" not in it.screen.display[-1]
    it.type(b"x")
    it.shows("keys 'x'")
    assert "first.test" in it.screen.display[-1], "it stays while the program draws"
    time.sleep(0.6)
    it.type(b"\x1fn")
    it.shows("allow GET xn--pple-43d.test/b")
    listed = moat("ask").stdout
    assert "xn--pple-43d.test (international: CYRILLIC and LATIN letters)" in listed
    second = terminal("attach", "q")
    second.shows("allow GET xn--pple-43d.test/b")
    assert moat("approve", "q", "xn--pple-43d.test", "--once").returncode == 0
    for each in (it, second):
        each.shows("BOTTOM")
        assert "moat: allow" not in "".join(each.screen.display)
    refused, passed = answers(workspace, 2)[:2]
    assert json.loads(refused)["error"].endswith("the user does not want this run to reach first.test")
    assert "xn--pple-43d.test cannot be resolved" in passed, "it went on to the next thing that can go wrong"
    it.type(b"q")
    assert it.end() == 0


@pytest.mark.embedded
@pytest.mark.usefixtures("embedded")
def test_the_menu_has_more_answers(terminal: Open, workspace: Path, home: Path) -> None:
    hosts(workspace, "https://one.test/a", "https://one.test/b", "https://two.test/c", "https://two.test/d")
    it: Terminal = terminal("run", "-i", "--ask", "--name", "q", "--", "python3", "full.py")
    for path, key in (("one.test/a", b"o"), ("one.test/b", b"N"), ("two.test/c", b"A")):
        it.shows(f"moat: allow GET {path}")
        time.sleep(0.6)
        it.type(b"\x1f")
        it.shows("A  always")
        it.type(key)
    once, never, always, again = answers(workspace, 4)[:4]
    assert "cannot be resolved" in once
    assert "the user does not want this run to reach one.test" in never
    assert "cannot be resolved" in always
    assert "cannot be resolved" in again, "without a further question"
    kept = (home / ".moat/config.yaml").read_text()
    assert ["one.test:443" in kept, "two.test:443" in kept] == [True, True]
    it.type(b"q")
    assert it.end() == 0


@pytest.mark.embedded
@pytest.mark.usefixtures("embedded")
def test_a_plain_run_asks_where_its_terminal_is_idle(terminal: Open, moat: Moat, home: Path) -> None:
    fetch = "for h in a b c a; do curl -s -o /dev/null -w '%{http_code}\\n' https://$h.test/x; done"
    it = terminal("run", "--ask", "--name", "plain", "--", "sh", "-c", f"sleep 1; {fetch}")
    it.type(b"y\n")  # typed for the shell, before anything was asked
    it.shows("GET a.test/x waits. Allow this host for this run? [y/n/?]")
    time.sleep(0.5)
    assert moat("ask", "plain", "--json").stdout.count('"waiting": true') == 1, "that was no answer"
    it.type(b"what\n")
    it.shows("y or n are for this run; once, 10m, always and never are answers, too")
    it.type(b"always\n")
    it.shows("GET b.test/x waits.")
    time.sleep(0.5)
    it.type(b"n\n")
    it.shows("GET c.test/x waits.")
    quicker = terminal("approve", "plain")
    quicker.shows("Which one to approve [1]: ")
    quicker.type(b"\r")  # what is in brackets
    assert quicker.end() == 0
    assert it.end() == 0
    assert "a.test:443" in (home / ".moat/config.yaml").read_text()
    assert re.findall(rb"(\d{3})\r?$", it.raw, re.MULTILINE) == [b"502", b"403", b"502", b"502"]


@pytest.mark.embedded
@pytest.mark.usefixtures("embedded")
def test_nobody_there(moat: Moat, home: Path) -> None:
    (home / ".moat").mkdir(mode=0o700)
    (home / ".moat/config.yaml").write_text("ask: {timeout: 1s, allow: ['known.test:80']}\n")
    fetch = "for h in new known new; do curl -s -w '%{http_code} %{time_total}\\n' http://$h.test/; done"
    done = moat("run", "--ask", "--name", "night", "--", "sh", "-c", fetch)
    first, known, again = re.findall(r"(\{.*\})\n?(\d+) ([0-9.]+)", done.stdout)
    assert (first[1], known[1], again[1]) == ("403", "502", "403")
    assert 1 <= float(first[2]) < 10
    assert float(again[2]) < 0.9, "an unattended run does not wait for each request"
    told = json.loads(first[0])
    assert told["reason"] == "ask"
    assert "nobody has answered" in told["error"]
    assert "moat approve night new.test:80" in told["hint"]
    assert "moat: GET new.test:80/ waits for you: `moat approve night new.test:80`" in done.stderr
    assert done.stderr.count("waits for you") == 1


@pytest.mark.embedded
@pytest.mark.usefixtures("embedded")
def test_for_good_and_what_is_wrong(moat: Moat, home: Path, workspace: Path) -> None:
    (home / ".moat").mkdir(mode=0o700)
    (home / ".moat/config.yaml").write_text("# mine\nask:\n  timeout: 5m  # for slow machines\n")
    (workspace / "agent.yaml").write_text("network: {policy: ask}\n")
    fetch = (
        "sleep 0.5; for i in 1 2; do curl -s -o /dev/null -w '%{http_code}\\n' http://new.test:8080/; done"
    )
    for name in ("one", "two"):
        assert moat("run", "-d", "--name", name, "--", "sh", "-c", fetch).returncode == 0
        until(lambda name=name: called("ask", name, "--json")[1] != "[]\n")
    for words, said in (
        (("approve", "new.test:8080"), "several runs ask about"),
        (("approve",), "which host is meant? "),
    ):
        status, _, err = called(*words)
        assert (status, said in err) == (2, True)
    assert moat("approve", "one", "new.test:8080", "--always").returncode == 0
    text = (home / ".moat/config.yaml").read_text()
    assert text == "# mine\nask:\n  timeout: 5m  # for slow machines\n  allow:\n    - new.test:8080\n"
    until(lambda: "stopped" in called("list")[1])
    assert called("logs", "one")[1] == "502\n502\n"
    assert called("approve", "two", "new.test:8080", "--once")[0] == 0
    until(lambda: called("logs", "two")[1].count("\n") == 2)
    assert called("logs", "two")[1] == "502\n502\n", "the second is answered by the file"
    for words, said in (
        (("approve", "one", "new.test"), "one has ended"),
        (("approve", "other.test"), "no run asks about other.test"),
        (("deny",), "nothing waits for an answer"),
        (("approve", "--for", "1d", "x", "y.test"), "a time is e.g."),
        (("ask", "nothing"), "no run 'nothing'"),
    ):
        status, _, err = called(*words)
        assert status in {2, 3}
        assert said in err
    (workspace / "agent.yaml").write_text("network: {policy: ask, mode: warn}\n")
    assert "exclude each other" in moat("run", "--", "true").stderr
    (workspace / "agent.yaml").write_text("network: {mode: warn}\n")
    assert "exclude each other" in moat("run", "--ask", "--accept-config", "--", "true").stderr


def test_a_run_that_ends_at_this_moment(tmp_path: Path, home: Path) -> None:
    """It says hello and hangs up: an error, not the silence of a broken pipe."""
    path = tmp_path / "s"
    with socket.create_server(str(path), family=socket.AF_UNIX) as server:

        def end() -> None:
            for _ in range(2):
                peer, _ = server.accept()
                with peer:
                    peer.recv(4096)
                    peer.sendall(control.pack_json(control.Frame.WELCOME, {}))

        thread = threading.Thread(target=end)
        thread.start()
        record = RunRecord(
            id="run_0123456789ab", name="x", workspace="/", argv=(), created_at=0.0, socket=str(path)
        )
        with pytest.raises(MoatError, match="has just ended"):
            answering.questions_of(record, alone=True)
        assert answering.questions_of(record) == []
        thread.join()


def called(*words: str) -> tuple[int, str, str]:
    """Status, stdout and stderr of a command, in this process: there are many."""
    out, err = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(words))
        out.flush()
    return status, out.buffer.getvalue().decode(), err.getvalue()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_one_that_does_not_ask(moat: Moat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOAT_RUNTIME", "embedded")
    moat("run", "-d", "--name", "free", "--", "sleep", "20")
    status, _, err = called("approve", "free", "a.test")
    assert (status, "this run asks nothing" in err) == (3, True)
    assert called("ask")[2] == "moat: nothing waits for an answer\n"
    monkeypatch.setattr(answering, "_CONNECT", 0.5)
    pid = json.loads(called("list", "--json")[1])[0]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        status, _, err = called("ask", "free")
        assert (status, "does not answer" in err) == (3, True)
        assert "moat: warning: free: the run does not answer" in called("deny")[2], (
            "the others count all the same"
        )
    finally:
        os.kill(pid, signal.SIGCONT)
