"""`moat list`, `stop`, `destroy`, `clean`: what exists, and how it goes away."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

from moat.cli import output

Moat = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.embedded


@pytest.fixture(autouse=True)
def _embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOAT_RUNTIME", "embedded")


def rows(moat: Moat) -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in json.loads(moat("list", "--json").stdout)}


def begin(moat: Moat, name: str, *argv: str) -> str:
    done = moat("run", "-d", "--name", name, "--", *(argv or ("sleep", "100")))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_no_runs(moat: Moat) -> None:
    done = moat("list")
    assert (done.stdout, done.stderr, done.returncode) == ("NAME  RUN ID  STATE  AGE\n", "", 0)
    assert json.loads(moat("list", "--json").stdout) == []


def test_a_name_that_is_nearly_right(moat: Moat) -> None:
    moat("run", "--name", "feature-auth", "--", "true")
    done = moat("logs", "feature-atuh")
    assert (done.returncode, done.stderr) == (
        2,
        "moat: error: no run 'feature-atuh'\nmoat: hint: did you mean `feature-auth`?\n",
    )
    assert "`moat list` shows the runs" in moat("logs", "other").stderr


def test_bytes_that_are_no_text_are_listed(moat: Moat, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen to fail, with a traceback, for as long as the run was kept."""
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")  # as in `en_US.UTF-8`, and not in `C.UTF-8`
    moat("run", "--name", "bytes", "--", "true", "a\udcffb")
    assert rows(moat)["bytes"]["argv"] == ["true", "a\udcffb"]
    assert json.loads(moat("status", "--json", "bytes").stdout)["argv"] == ["true", "a\udcffb"]


def test_a_terminal_that_has_no_unicode(moat: Moat, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen to fail, with a traceback."""
    moat("run", "--name", "umlaut", "--", "echo", "ü")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert "echo '\\xfc'" in moat("status", "umlaut").stdout
    assert rows(moat)["umlaut"]["argv"] == ["echo", "ü"]


def test_a_locale_that_cannot_name_a_workspace(
    moat: Moat, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "ü").mkdir()
    moat("run", "ü", "--", "true")
    for name, value in {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}.items():
        monkeypatch.setenv(name, value)
    done = moat("run", "--", "true")
    told = "moat: error: '\\xfc' cannot be written in the encoding of this locale, ascii\n"
    assert (done.returncode, done.stderr) == (3, told + "moat: hint: LC_ALL=C.UTF-8 moat ...\n")


@pytest.mark.parametrize("key", ["\x03", "\x04"])
def test_whoever_leaves_a_question_is_in_a_row_of_its_own(moat: Moat, moat_bin: str, key: str) -> None:
    """Seen to fail: the shell's prompt stood behind the question."""
    moat("run", "--", "true")
    with pexpect.spawn(moat_bin, ["clean"], timeout=10, encoding="utf-8") as terminal:
        terminal.expect_exact("[y/N] ")
        terminal.send(key)
        terminal.expect(pexpect.EOF)
        assert terminal.before
        assert terminal.before.endswith("\n")
    assert len(rows(moat)) == 1


def test_an_output_that_takes_nothing(moat: Moat, moat_bin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen to fail: `No space left on device: moat.cli.status`, and what Python says of it at its end."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    moat("run", "--", "true")
    full = subprocess.run(["sh", "-c", f"{moat_bin} status >/dev/full"], capture_output=True)
    told = b"moat: error: the output cannot be written: No space left on device\n"
    assert (full.stderr, full.returncode) == (told, 3)
    closed = subprocess.run(["sh", "-c", f"{moat_bin} --help >&-"], capture_output=True)
    assert (closed.stderr, closed.returncode) == (b"", 0)


def test_a_state_directory_of_another_user(home: Path) -> None:
    """`sudo moat` made it. Seen as another user: `Permission denied: …/.moat/runs`, and no way on."""
    own = output._owner(PermissionError(errno.EACCES, "Permission denied", str(home / ".moat/runs")))
    assert own
    assert f"sudo chown -R {os.geteuid()} {home}/.moat" in own
    assert output._owner(PermissionError(errno.EACCES, "Permission denied", "/elsewhere")) is None
    assert output._owner(FileNotFoundError(errno.ENOENT, "No such file", str(home / ".moat/runs"))) is None


def test_sizes_of_small_runs_can_be_told(moat: Moat) -> None:
    moat("run", "--name", "small", "--", "true")
    done = moat("clean", "--dry-run")
    assert re.search(r"small .* \d+\.\d kB$", done.stdout, re.MULTILINE)
    assert re.search(r"would remove 1 run, \d+\.\d kB", done.stderr)


def test_the_version_as_json(moat: Moat) -> None:
    version = moat("version").stdout.split()[1]
    assert json.loads(moat("version", "--json").stdout) == {"version": version}


def test_the_columns(moat: Moat) -> None:
    run_id = begin(moat, "feature-auth")
    moat("run", "--name", "broken", "--", "false")
    header, first, second = moat("list").stdout.splitlines()
    assert header.split() == ["NAME", "RUN", "ID", "STATE", "AGE"]
    assert re.fullmatch(r"broken        run_[0-9a-f]{12}  failed   \d+s", first)
    assert re.fullmatch(rf"feature-auth  {run_id}  running  \d+s", second)


def test_json_tells_everything(moat: Moat, tmp_path: Path) -> None:
    moat("run", "--name", "x", "--", "sh", "-c", "exit 4")
    row = rows(moat)["x"]
    assert row["state"] == "failed"
    assert row["exit_code"] == 4
    assert row["error"] == "exit status 4"
    assert row["runtime"] == "embedded"
    assert row["argv"] == ["sh", "-c", "exit 4"]
    assert row["workspace"] == str(tmp_path / "workspace")


def test_looking_changes_nothing(moat: Moat, home: Path) -> None:
    """The supervisor stands still meanwhile: what changes would be changed by who looks."""
    run_id = begin(moat, "x")
    directory = home / ".moat/runs" / run_id
    supervisor = int(str(rows(moat)["x"]["pid"]))
    os.kill(supervisor, signal.SIGSTOP)
    before = {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in directory.iterdir()}
    for argv in (("list",), ("logs",), ("trace",), ("trace", "--network"), ("status",), ("top", "--once")):
        assert moat(*argv).returncode == 0
    after = {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in directory.iterdir()}
    os.kill(supervisor, signal.SIGCONT)
    assert before == after


def test_a_killed_supervisor(moat: Moat, home: Path) -> None:
    run_id = begin(moat, "x", "sh", "-c", "echo hello; sleep 100")
    os.kill(int(str(rows(moat)["x"]["pid"])), signal.SIGKILL)
    time.sleep(0.3)
    assert rows(moat)["x"]["state"] == "lost"
    assert rows(moat)["x"]["error"] == "the supervisor was killed"
    assert moat("logs", "x").stdout == "hello\n"
    assert moat("stop", "x").returncode == 3
    assert moat("destroy", "x").stdout == f"{run_id}\n"
    assert not (home / ".moat/runs" / run_id).exists()


class TestStop:
    def test_by_name_by_id_and_the_only_one(self, moat: Moat) -> None:
        for name, word in (("a", "a"), ("b", "id"), ("c", "")):
            run_id = begin(moat, name)
            done = moat("stop", *([run_id if word == "id" else word] if word else []))
            assert (done.stdout, done.returncode) == (f"{run_id}\n", 0), done.stderr
            assert rows(moat)[name]["state"] == "stopped"

    def test_ambiguity_is_an_error_that_lists(self, moat: Moat) -> None:
        first, second = begin(moat, "a"), begin(moat, "b")
        done = moat("stop")
        assert done.returncode == 2
        assert first in done.stderr
        assert second in done.stderr
        assert moat("stop", "--all").stdout.split() == [second, first]
        assert moat("stop").returncode == 2
        assert moat("stop", "--all").returncode == 0

    def test_what_is_not_there_or_has_ended(self, moat: Moat) -> None:
        assert moat("stop", "nothing").returncode == 2
        moat("run", "--name", "over", "--", "true")
        done = moat("stop", "over")
        assert done.returncode == 3
        assert "has already ended" in done.stderr

    def test_a_supervisor_that_does_not_answer_is_killed(self, moat: Moat) -> None:
        begin(moat, "frozen")
        pid = int(str(rows(moat)["frozen"]["pid"]))
        os.kill(pid, signal.SIGSTOP)
        done = moat("stop", "frozen")
        assert done.returncode == 0, done.stderr
        assert "does not answer" in done.stderr
        assert rows(moat)["frozen"]["state"] == "lost"


class TestDestroy:
    def test_ended_ones_only(self, moat: Moat, home: Path) -> None:
        run_id = begin(moat, "x")
        done = moat("destroy", "x")
        assert done.returncode == 3
        assert f"moat stop {run_id}" in done.stderr
        moat("stop", "x")
        assert moat("destroy", "x").stdout == f"{run_id}\n"
        assert rows(moat) == {}


class TestClean:
    def test_stopped_and_failed_ones_go_and_living_ones_stay(self, moat: Moat) -> None:
        moat("run", "--name", "good", "--", "true")
        moat("run", "--name", "bad", "--", "false")
        begin(moat, "alive")
        done = moat("clean")
        assert done.returncode == 2
        assert "moat clean --yes" in done.stderr
        assert len(rows(moat)) == 3
        assert len(moat("clean", "--yes").stdout.split()) == 2
        assert list(rows(moat)) == ["alive"]
        assert moat("clean", "--yes").stderr == "moat: nothing to clean\n"

    @pytest.mark.parametrize(("answer", "left"), [("y", 0), ("", 1), ("n", 1)])
    def test_it_asks_on_a_terminal(self, moat: Moat, moat_bin: str, answer: str, left: int) -> None:
        moat("run", "--", "true")
        with pexpect.spawn(moat_bin, ["clean"], timeout=10, encoding="utf-8") as terminal:
            terminal.expect_exact("Remove 1 run with logs and snapshots? [y/N] ")
            terminal.sendline(answer)
            terminal.expect(pexpect.EOF)
        assert len(rows(moat)) == left
