"""What a run survives, and what is told when it does not: a row of docs/survival.md for each test.

The agent asks for the metadata address over and over and writes down what it got: 403 means that its proxy is there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import pytest

from moat.cli import main
from moat.paths import Home, runtime_dir
from moat.runtime import engine_socket, known, records, sweep
from moat.runtime.records import RunRecord, State
from tests.conftest import REPOSITORY
from tests.journal.kit import fill, small_disk
from tests.runtime import test_crashes, test_engine_restart
from tests.runtime.survival_kit import (
    AGENT,
    BOTH,
    containers,
    goes_on,
    is_docker,
    is_still,
    leftovers,
    only,
    processes_of,
    until,
)

Moat = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def place(home: Path) -> Home:
    return Home.from_environment()


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "workspace"
    path.mkdir()
    (path / "agent.py").write_text(AGENT)
    return path


def family(pid: int) -> list[int]:
    """A process and all that descend from it, as the kernel has them now."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(name))
    found = [pid]
    for member in found:
        found += children.get(member, [])
    return found


def everything_of(record: RunRecord) -> list[int]:
    """Supervisor, warden, and what is in the sandbox."""
    inside = [family(_first_pid(item["Id"])) for item in containers(record.id)] if is_docker(record) else []
    return list(dict.fromkeys([*family(record.pid), *[pid for group in inside for pid in group]]))


def _first_pid(container: str) -> int:
    return int(engine_socket.ask("GET", f"/containers/{container}/json").body["State"]["Pid"])


def kill(*pids: int, number: int = signal.SIGKILL) -> None:
    for pid in pids:
        os.kill(pid, number)


@pytest.mark.parametrize("runtime", BOTH)
def test_its_command_is_killed_its_terminals_close_and_the_machine_sleeps(
    place: Home, workspace: Path, moat: Moat, moat_bin: str, runtime: str
) -> None:
    argv = ["run", "-i", "--runtime", runtime, "--name", "tough", "--", "python3", "-u", "agent.py"]
    started = pexpect.spawn(moat_bin, argv, cwd=workspace, timeout=30)
    started.expect("403")
    kill(started.pid)
    assert goes_on(workspace)
    started.close(force=True)
    with pexpect.spawn(moat_bin, ["attach", "tough"], cwd=workspace, timeout=30) as attached:
        attached.expect("403")
    assert not attached.isalive()
    assert goes_on(workspace)
    record = only(place)
    asleep = everything_of(record)
    kill(*asleep, number=signal.SIGSTOP)
    assert is_still(workspace)
    assert moat("list", timeout=5).stdout.splitlines()[1].split()[:3] == ["tough", record.id, "running"]
    kill(*asleep, number=signal.SIGCONT)
    assert goes_on(workspace)
    _by_two_at_once([moat_bin, "stop", "tough"], workspace, "already ended")
    ended = only(place)
    assert (ended.state, ended.directory) == (State.STOPPED, "")
    assert moat("audit", "tough", "--verify").returncode == 0
    _by_two_at_once([moat_bin, "destroy", "tough"], workspace, "no run 'tough'")
    assert records.read_all(place) == []
    assert not place.run(record.id).exists()
    assert leftovers(record) == []


def _by_two_at_once(argv: list[str], cwd: Path, refusal: str) -> None:
    """Both succeed, or one comes too late and says so."""
    two = [
        subprocess.Popen(argv, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in "12"
    ]
    said = [process.communicate(timeout=30) for process in two]
    assert 0 in [process.returncode for process in two], said
    for process, (_, complaint) in zip(two, said, strict=True):
        assert process.returncode == 0 or refusal in complaint, complaint


@pytest.mark.parametrize("runtime", BOTH)
def test_a_killed_supervisor_is_cleared_up_after_without_anybody_looking(
    place: Home, workspace: Path, moat: Moat, runtime: str
) -> None:
    """Seen failing for docker without `warden.appoint`: the container then runs until somebody looks."""
    moat("run", "-d", "--runtime", runtime, "--", "python3", "agent.py", cwd=workspace)
    assert goes_on(workspace)
    record = only(place)
    kill(record.pid)
    until(lambda: only(place).state is State.LOST and not only(place).directory)
    assert only(place).error == "the supervisor was killed"
    assert is_still(workspace)
    assert leftovers(record) == []
    until(lambda: not processes_of(place))  # the warden has ended as well


@pytest.mark.parametrize("runtime", BOTH)
def test_everything_is_gone_after_a_restart_of_the_machine(
    workspace: Path, moat: Moat, runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking neither waits for an engine that does not answer nor believes the record.

    Seen failing with the clearing up inside of `known.all_runs`: `moat list` then takes 30 s.
    """
    place = Home.from_environment()
    moat("run", "-d", "--runtime", runtime, "--name", "gone", "--", "python3", "agent.py", cwd=workspace)
    assert goes_on(workspace)
    record = only(place)
    records.write(place, dataclasses.replace(record, boot="another"))
    wardens = [pid for pid in processes_of(place) if pid != record.pid]
    kill(*wardens, record.pid)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "s"))
        silent.listen(64)
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path / 's'}")
        until(lambda: not records.owned(place.run(record.id)))
        began = time.monotonic()
        (row,) = json.loads(moat("list", "--json", timeout=20).stdout)
        assert time.monotonic() - began < 10
        assert (row["state"], row["error"]) == ("lost", "the machine was restarted")
        monkeypatch.delenv("DOCKER_HOST")
    until(lambda: only(place).state is State.LOST)
    until(lambda: not (moat("list"), only(place))[1].directory)
    assert leftovers(record) == []
    assert is_still(workspace)
    assert "403" in moat("logs", "gone").stdout
    assert {path.name for path in runtime_dir().iterdir()} <= {"keyring.lock"}
    assert moat("destroy", "gone").stdout == f"{record.id}\n"


@pytest.mark.parametrize("runtime", BOTH)
def test_the_disk_fills_up_under_a_run(
    workspace: Path, moat: Moat, runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        monkeypatch.setenv("MOAT_HOME", str(disk / "moat"))
        place = Home.from_environment()
        script = "touch ready; until [ -e go ]; do sleep 0.05; done; exit 7"
        moat("run", "-d", "--runtime", runtime, "--no-snapshots", "--", "sh", "-c", script, cwd=workspace)
        until((workspace / "ready").exists)
        ballast = fill(disk)
        (workspace / "go").touch()
        until(lambda: only(place).state.ended)
        assert (only(place).state, only(place).exit_code) == (State.FAILED, 7)
        refused = moat("run", "--runtime", runtime, "--", "true", cwd=workspace)
        assert refused.returncode == 3
        assert "moat clean" in refused.stderr
        ballast.unlink()
        assert moat("clean", "--yes").returncode == 0
        assert moat("run", "--runtime", runtime, "--", "true", cwd=workspace).returncode == 0
        shutil.rmtree(disk / "moat")


@pytest.mark.parametrize("runtime", BOTH)
def test_too_few_files_and_no_place_to_keep_runs(
    workspace: Path, moat: Moat, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = moat("run", "--runtime", runtime, "--", "true", cwd=workspace, preexec_fn=_few_files)
    assert few.returncode == 3
    assert few.stderr.splitlines()[-2:] == [
        "moat: error: a run needs more open files than it may have here",
        "moat: hint: ulimit -n 4096",
    ]
    monkeypatch.setenv("MOAT_HOME", "/proc/moat")
    nowhere = moat("run", "--runtime", runtime, "--", "true", cwd=workspace)
    assert nowhere.returncode == 3
    assert "moat: error: runs cannot be kept in /proc/moat:" in nowhere.stderr
    assert "moat: hint: set MOAT_HOME to a directory that you can write" in nowhere.stderr
    assert moat("list").returncode == 0


def _few_files() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (255, 255))


@pytest.mark.parametrize("runtime", BOTH)
def test_two_runs_of_one_name(place: Home, workspace: Path, moat: Moat, moat_bin: str, runtime: str) -> None:
    for _ in "12":
        argv = ("run", "-d", "--runtime", runtime, "--no-snapshots", "--name", "x", "--", "sleep", "100")
        assert moat(*argv, cwd=workspace).returncode == 0
    both = {run.id for run in known.all_runs(place)}
    refused = moat("stop", "x")
    assert refused.returncode == 2
    assert all(run_id in refused.stderr for run_id in both)
    with pexpect.spawn(moat_bin, ["stop", "x"], timeout=20, encoding="utf-8") as terminal:
        terminal.expect_exact("Stop these 2 runs? [y/N] ")
        terminal.sendline("n")
        terminal.expect(pexpect.EOF)
    assert [run.state for run in known.all_runs(place)] == [State.RUNNING, State.RUNNING]
    assert set(moat("stop", "--yes", "x").stdout.split()) == both
    told = json.loads(moat("clean", "--dry-run", "--json").stdout)
    assert ({run["id"] for run in told["runs"]}, told["removed"]) == (both, False)
    assert told["bytes"] > 0
    assert "would remove 2 runs" in moat("clean", "--dry-run").stderr
    assert set(moat("destroy", *both).stdout.split()) == both


CLOCK = """\
import datetime, os, time
real = time.time
def jumped():
    with open(os.environ["TEST_CLOCK"]) as file:
        return float(file.read())
time.time = lambda: real() + jumped()
class Moved(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(seconds=jumped())
datetime.datetime = Moved
"""


@pytest.mark.parametrize("runtime", BOTH)
def test_the_clock_jumps(
    workspace: Path, moat: Moat, runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor's. (libfaketime breaks `time.sleep`.) For certificates: tests/proxy/test_certs.py."""
    place = Home.from_environment()
    clock = tmp_path / "clock"
    clock.write_text("0")
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    with monkeypatch.context() as faked:
        faked.setenv("PYTHONPATH", str(tmp_path))
        faked.setenv("TEST_CLOCK", str(clock))
        argv = ("run", "-d", "--runtime", runtime, "--name", "x", "--", "python3", "agent.py")
        assert moat(*argv, cwd=workspace).returncode == 0
    for days in (3, -3):
        (tmp_path / "next").write_text(str(days * 86400))
        (tmp_path / "next").rename(clock)
        assert goes_on(workspace)
        assert moat("list").stdout.splitlines()[1].split()[2] == "running"
    assert moat("stop", "x").returncode == 0
    ended = only(place)
    assert ended.state is State.STOPPED
    assert (ended.ended_at or 0) < ended.created_at, "its clock was set back by three days"
    assert moat("audit", "x", "--verify").returncode == 0
    assert moat("list").stdout.splitlines()[1].split()[2] == "stopped"
    times = [json.loads(line)["ts"] for line in moat("trace", "--network", "--json", "x").stdout.splitlines()]
    assert len({str(stamp)[:10] for stamp in times}) >= 2, "the jumps reached the proxy"


def _write_runs(place: Home, count: int, **data: Any) -> None:
    for number in range(count):
        run_id = f"run_{number:012x}"
        place.run(run_id).mkdir(parents=True, mode=0o700)
        record = RunRecord(
            id=run_id, name="old", workspace="/w", argv=("true",), created_at=float(number), **data
        )
        (place.run(run_id) / "run.json").write_text(json.dumps(record.to_json()))


def test_what_an_engine_may_still_have_is_not_given_up(
    place: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine in trouble, or one that was stopped, may have the containers of dead runs. It is asked once.

    Seen failing: a missing socket was taken for an engine without containers, and so was a status of 500.
    """
    _write_runs(place, 20, state=State.RUNNING, runtime="docker", directory=str(tmp_path / "gone"))
    asked = []

    def refuse(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    asked.append(connection.recv(65536))
                    connection.sendall(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path / 's'}")
        thread = threading.Thread(target=refuse, args=(listener,))
        thread.start()
        sweep.sweep(place)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert len(asked) == 1
    (tmp_path / "s").unlink()
    sweep.sweep(place)
    assert main(["clean", "--yes"]) == 3
    assert {(run.state, bool(run.directory)) for run in records.read_all(place)} == {(State.LOST, True)}
    monkeypatch.setenv("PATH", str(tmp_path))  # Docker was removed from this machine
    sweep.sweep(place)
    assert {(run.state, bool(run.directory)) for run in records.read_all(place)} == {(State.LOST, False)}


@pytest.mark.parametrize(("state", "limit"), [(State.STOPPED, 0.1), (State.RUNNING, 0.15)])
def test_a_thousand_old_runs(
    place: Home, state: State, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended ones, and such as lost their supervisors: 0.05 and 0.07 s on a quiet machine."""
    begun: list[Home] = []
    monkeypatch.setattr(sweep, "begin", begun.append)
    _write_runs(place, 1000, state=state, directory="/gone" if state is State.RUNNING else "")
    times = []
    for _ in range(5):
        began = time.process_time()
        assert len(known.all_runs(place)) == 1000
        times.append(time.process_time() - began)
    assert min(times) < limit
    assert bool(begun) == (state is State.RUNNING)


# The first column of the table in docs/survival.md, and what makes it happen.
ROWS = {
    "the `moat` command is killed": test_its_command_is_killed_its_terminals_close_and_the_machine_sleeps,
    "the terminal is closed, the connection lost": (
        test_its_command_is_killed_its_terminals_close_and_the_machine_sleeps
    ),
    "the machine sleeps (everything stands still)": (
        test_its_command_is_killed_its_terminals_close_and_the_machine_sleeps
    ),
    "the supervisor is killed": test_a_killed_supervisor_is_cleared_up_after_without_anybody_looking,
    "the supervisor is killed at any other moment": test_crashes.test_killed_at_any_moment,
    "supervisor and warden are killed": test_everything_is_gone_after_a_restart_of_the_machine,
    "the machine restarts": test_everything_is_gone_after_a_restart_of_the_machine,
    "the Docker engine is stopped and started": test_engine_restart.test_the_engine_ends_and_comes_back,
    "the Docker engine is killed and started": test_engine_restart.test_the_engine_ends_and_comes_back,
    "an engine that does not answer": test_everything_is_gone_after_a_restart_of_the_machine,
    "the disk is full": test_the_disk_fills_up_under_a_run,
    "the clock jumps, by days, forward or back": test_the_clock_jumps,
    "too few open files are allowed": test_too_few_files_and_no_place_to_keep_runs,
    "`MOAT_HOME` cannot be written": test_too_few_files_and_no_place_to_keep_runs,
    "two commands stop it at once": test_its_command_is_killed_its_terminals_close_and_the_machine_sleeps,
    "two commands destroy it at once": test_its_command_is_killed_its_terminals_close_and_the_machine_sleeps,
    "two runs have one name": test_two_runs_of_one_name,
    "a thousand old runs": test_a_thousand_old_runs,
}


def test_every_row_of_the_table_is_tested_in_the_runtimes_that_it_names() -> None:
    table = (REPOSITORY / "docs/survival.md").read_text().partition("|---|---|---|---|\n")[2]
    rows = [line.strip("| ").split(" | ") for line in table.partition("\n\n")[0].splitlines()]
    assert {what: where for what, *_, where in rows} == {row: _where(test) for row, test in ROWS.items()}


def _where(test: Callable[..., None]) -> str:
    """In both runtimes, in one, or (without a sandbox) in none."""
    marks = {mark.name: mark for mark in getattr(test, "pytestmark", [])}
    if "docker" in marks:
        return "`docker`"
    return "both" if "parametrize" in marks and marks["parametrize"].args[1] is BOTH else "any"
