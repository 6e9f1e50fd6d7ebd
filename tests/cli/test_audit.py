"""`moat audit`: what happened in a run, and the verdict on its journal, for people and for scripts."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import moat.runtime as moat_runtime
from moat.cli.audit import describe
from moat.paths import Home

Moat = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.embedded


@pytest.fixture(autouse=True)
def _embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOAT_RUNTIME", "embedded")


def place(run: str) -> Path:
    return Home.from_environment().run(run) / "journal.jsonl"


def newest(moat: Moat) -> str:
    return str(json.loads(moat("list", "--json").stdout)[0]["id"])


def test_entries_for_people_and_as_kept(moat: Moat) -> None:
    moat("run", "--name", "first", "--", "curl", "-s", "http://169.254.169.254/a?b")
    done = moat("audit", "first")
    lines = done.stdout.splitlines()
    assert re.fullmatch(
        r"\[\d\d:\d\d:\d\d\] run.created +mode=enforce  name=first  policy=permissive .*", lines[1]
    )
    (denied,) = [line for line in lines if "network.denied" in line]
    assert "authority=169.254.169.254" in denied
    assert "exchanges=1" in denied
    assert moat("audit", "--json").stdout == place(newest(moat)).read_text()


def test_a_verdict_and_its_exit_status(moat: Moat) -> None:
    moat("run", "--name", "first", "--", "true")
    key = moat("audit", "key").stdout.strip()
    done = moat("audit", "first", "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "proven" in done.stdout
    assert "nothing is missing at the end" in done.stdout
    assert "not proven: that nobody who can read the private key" in done.stdout
    assert key in done.stdout
    report = json.loads(moat("audit", "--verify", "--json").stdout)
    assert (report["verdict"], report["state"], report["key"]) == ("proven", "sealed", key)
    path = place(newest(moat))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    done = moat("audit", "--verify")
    assert done.returncode == 1
    assert "TAMPERED\n  entries 3 to 3 are missing" in done.stdout
    assert moat("audit", "--verify", "--all").returncode == 1
    path.write_bytes(b"".join(lines))
    (Home.from_environment().journal / "key").unlink()
    done = moat("audit", "--verify")
    assert (done.returncode, "cannot tell" in done.stdout) == (3, True)
    assert moat("audit", "--verify", "--key", key).returncode == 0


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["nothing"], "no run 'nothing'"),
        (["--all"], "--all goes with --verify"),
        (["--verify", "--key", "x"], "'x' is not a public key"),
        (["--verify", "-f"], "it does not follow"),
    ],
)
def test_usage(moat: Moat, argv: list[str], told: str) -> None:
    done = moat("audit", *argv)
    assert (done.returncode, told in done.stderr) == (2, True), done.stderr


def test_following_a_run(moat: Moat, moat_bin: str) -> None:
    moat("run", "-d", "--name", "x", "--", "sh", "-c", "sleep 1; curl -s http://169.254.169.254; sleep 1")
    with subprocess.Popen(
        [moat_bin, "audit", "-f", "--json", "x"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        seen = {}
        for line in process.stdout:
            seen[json.loads(line)["event"]] = time.monotonic()
    assert next(iter(seen)) == "journal.opened"
    assert list(seen)[-1] == "journal.sealed"
    assert seen["journal.sealed"] - seen["network.denied"] > 0.3, "as it happened"


def test_json_as_it_is_kept_draws_on_no_terminal(moat: Moat, moat_bin: str) -> None:
    """A run names files that git obeys, say. Seen failing: U+009B, which begins a command to the terminal."""
    moat("run", "--name", "x", "--", "true")
    path = place(newest(moat))
    line = '{"seq":9,"data":{"changes":["\x9b2J\u202e"]}}'
    path.write_bytes(path.read_bytes() + line.encode() + b"\n")
    for words in (("--json",), ("--export", "-")):
        master, slave = pty.openpty()
        with os.fdopen(master, "rb", buffering=0) as terminal:
            subprocess.run([moat_bin, "audit", "x", *words], stdout=slave, check=True)
            shown = b""
            while b"changes" not in shown or not shown.endswith(b"\r\n"):
                shown += terminal.read(65536)
            os.close(slave)
        assert "\x9b" not in shown.decode()
        assert "\u202e" not in shown.decode()
        assert "\\u009b2J\\u202e" in shown.decode().replace("\\\\", "\\")
    assert line in moat("audit", "x", "--json").stdout, "in a pipe it is what was kept"


def test_who_stopped_it(moat: Moat) -> None:
    moat("run", "-d", "--name", "x", "--", "sleep", "60")
    moat("stop", "x")
    assert 'run.stop_asked     by="the control socket"' in moat("audit", "x").stdout
    assert moat("audit", "--verify").returncode == 0


def test_a_killed_supervisor_and_a_removed_run(moat: Moat) -> None:
    """Unsealed is told and is no accusation; cutting the journal after somebody looked is one."""
    moat("run", "-d", "--name", "x", "--", "sleep", "60")
    record = json.loads(moat("list", "--json").stdout)[0]
    path = place(record["id"])
    before = {p: p.read_bytes() for p in (path, path.with_name("journal.head"))}
    live = moat("audit", "x", "--verify")
    assert (live.returncode, "the run goes on" in live.stdout) == (0, True)
    os.kill(record["pid"], signal.SIGKILL)
    _gone(record["pid"])
    done = moat("audit", "x", "--verify")
    assert (done.returncode, "there is no seal" in done.stdout) == (0, True), done.stdout
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    assert moat("audit", "x", "--verify").returncode == 1
    for kept, data in before.items():
        kept.write_bytes(data)
    assert moat("audit", "x", "--verify").returncode == 0
    moat("destroy", "x")
    assert moat("audit", "--verify", "--all").returncode == 0


def _gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_deleted_run_is_missed(moat: Moat) -> None:
    moat("run", "--", "true")
    run = newest(moat)
    for path in sorted(place(run).parent.rglob("*"), reverse=True):
        path.unlink()
    place(run).parent.rmdir()
    done = moat("audit", "--verify", "--all")
    assert done.returncode == 1
    assert f"{run}: TAMPERED\n  the journal is gone" in done.stdout


def test_values_are_told_apart() -> None:
    line = describe(
        {"at": "x", "event": "a.b", "data": {"a": "", "b": None, "c": [1, "x"], "d": 'x "y', "e": "\x1b["}}
    )
    assert line == '[--:--:--] a.b                c=[1,"x"]  d="x \\"y"  e=\\x1b['


def test_a_bundle_on_another_machine(moat: Moat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which has a Moat of its own, or none: only the key that it is given counts."""
    moat("run", "--name", "first", "--", "true")
    key = moat("audit", "key").stdout.strip()
    path = tmp_path / "bundle.json"
    assert moat("audit", "first", "--export", str(path)).returncode == 0
    again = moat("audit", "first", "--export", str(path))
    assert (again.returncode, "exists already" in again.stderr) == (2, True)
    assert moat("audit", "first", "--export", "-").stdout == path.read_text()
    assert moat("audit", "verify", str(path)).returncode == 0, "here the key is ours"
    monkeypatch.setenv("MOAT_HOME", str(tmp_path / "elsewhere"))
    assert moat("audit", "verify", str(path)).returncode == 3
    assert not (tmp_path / "elsewhere").exists(), "verifying leaves nothing"
    other = moat("audit", "key").stdout.strip()
    assert moat("audit", "verify", str(path)).returncode == 3
    done = moat("audit", "verify", str(path), "--key", key)
    assert (done.returncode, "proven" in done.stdout) == (0, True)
    assert moat("audit", "verify", str(path), "--key", other).returncode == 1
    path.write_text(path.read_text().replace("run.started", "run.starved"))
    done = moat("audit", "verify", str(path), "--key", key, "--json")
    assert (done.returncode, json.loads(done.stdout)["verdict"]) == (1, "tampered")
    for missing in ("no-such-file", str(tmp_path)):
        assert moat("audit", "verify", missing, "--key", key).returncode == 2


def test_copies_of_a_run(moat: Moat, home: Path, tmp_path: Path) -> None:
    """As configured by the user; a required place that cannot be written keeps the run from starting."""
    config = home / ".moat/config.yaml"
    config.parent.mkdir(mode=0o700, exist_ok=True)
    config.write_text(
        "journal: {copy_to: [{file: ~/copy.jsonl, required: true}, {command: [tee, /nowhere/x]}]}\n"
    )
    config.chmod(0o600)
    done = moat("run", "--", "true")
    assert done.returncode == 0, done.stderr
    assert (home / "copy.jsonl").read_bytes() == place(newest(moat)).read_bytes()
    config.write_text("journal: {copy_to: [{file: /proc/nowhere, required: true}]}\n")
    done = moat("run", "--", "touch", "ran")
    assert done.returncode == 3
    assert "moat: error: the journal cannot be written: its copy to file: /proc/nowhere fails" in done.stderr
    assert "moat: hint: it is required in journal.copy_to" in done.stderr
    assert not (tmp_path / "workspace/ran").exists()
    assert len(json.loads(moat("list", "--json").stdout)) == 1, "nothing remains of it"
    config.write_text(f"journal: {{copy_to: [{{file: {tmp_path}/workspace/copy}}]}}\n")
    done = moat("run", "--", "true")
    assert (done.returncode, "the sandbox could change" in done.stderr) == (3, True)


def test_the_trace_is_under_the_seal_and_programs_can_read(moat: Moat) -> None:
    moat("run", "--name", "first", "--", "curl", "-s", "http://169.254.169.254/a")
    entries = moat_runtime.read_journal("first")
    assert [e.seq for e in entries] == list(range(1, len(entries) + 1))
    assert entries[-1].event == "journal.sealed"
    report = moat_runtime.verify_journal("first")
    assert (report.status, report.state, report.entries) == (0, "sealed", len(entries))
    trace = place(newest(moat)).with_name("network.jsonl")
    trace.write_bytes(trace.read_bytes().replace(b"/a", b"/b"))
    assert moat_runtime.verify_journal("first").problems == ["network.jsonl was changed"]
    trace.unlink()
    assert moat_runtime.verify_journal("first").status == 1
