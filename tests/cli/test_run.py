"""`moat run` as a user meets it: pipes, status, signals, flags, in both runtimes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moat.cli.start import _stopped_when_interrupted
from moat.paths import Home
from moat.runtime import launch
from moat.runtime.records import State, read
from moat.runtime.request import RunRequest
from tests.cli.wizard import Start

Moat = Callable[..., subprocess.CompletedProcess[str]]
BOTH = [
    pytest.param("embedded", marks=pytest.mark.embedded),
    pytest.param("docker", marks=pytest.mark.docker),
]


@pytest.fixture(params=BOTH)
def runtime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MOAT_RUNTIME", request.param)
    return str(request.param)


Begin = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def begin(moat_bin: str, workspace: Path) -> Iterator[Begin]:
    """`moat run …` as a process that the test plays with."""
    with contextlib.ExitStack() as processes:

        def start(*argv: str, **options: Any) -> subprocess.Popen[bytes]:
            settings = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            process = subprocess.Popen([moat_bin, "run", *argv], cwd=workspace, **(settings | options))
            processes.enter_context(process)
            processes.callback(process.kill)
            return process

        yield start


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def test_streams_and_status_are_the_command_s_own(moat: Moat, runtime: str) -> None:
    done = moat("run", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 7)


def test_a_pipe_goes_through(moat: Moat, runtime: str) -> None:
    done = moat("run", "--", "cat", input="x\n")
    assert (done.stdout, done.stderr, done.returncode) == ("x\n", "", 0)


def test_a_large_pipe_goes_through_unchanged(begin: Begin, runtime: str) -> None:
    data = os.urandom(1 << 20) * 8
    process = begin("--", "sh", "-c", "sleep 1; cat; echo fin >&2", stdin=subprocess.PIPE)
    out, err = process.communicate(data, timeout=60)
    assert err == b"fin\n"
    assert out == data


def test_stdin_from_a_file(moat: Moat, workspace: Path, embedded: None) -> None:
    (workspace / "in").write_text("from a file\n")
    with (workspace / "in").open() as file:
        assert moat("run", "--", "cat", stdin=file).stdout == "from a file\n"


def test_input_that_nobody_reads_does_not_hang(moat: Moat, embedded: None) -> None:
    done = moat("run", "--", "true", input="x" * 5_000_000, timeout=30)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_no_byte_is_lost_and_a_slow_reader_slows_the_command(
    begin: Begin, workspace: Path, runtime: str
) -> None:
    script = "for i in $(seq 1 200); do head -c 100000 /dev/zero; echo $i > progress; done"
    process = begin("--", "sh", "-c", script)
    progress = workspace / "progress"
    until(progress.exists)
    time.sleep(3)
    assert int(progress.read_text() or 0) < 100, "it waits for its reader"
    out, err = process.communicate(timeout=60)
    assert (len(out), err, process.returncode) == (20_000_000, b"", 0)


def test_a_reader_that_leaves_ends_the_command(begin: Begin, moat_bin: str, embedded: None) -> None:
    """`moat run -- yes | head -1` must not go on in the background for ever."""
    process = begin("--name", "chatty", "--", "yes")
    assert process.stdout
    assert process.stdout.read(2) == b"y\n"
    process.stdout.close()
    assert process.wait(timeout=30) == 128 + signal.SIGPIPE
    until(lambda: states(moat_bin)["chatty"] == "stopped")
    assert process.stderr
    assert process.stderr.read() == b""


def states(moat_bin: str) -> dict[str, str]:
    done = subprocess.run([moat_bin, "list", "--json"], capture_output=True, check=True)
    return {run["name"]: run["state"] for run in json.loads(done.stdout)}


def test_interrupt_goes_to_the_command(begin: Begin, moat_bin: str, runtime: str) -> None:
    process = begin("--", "sleep", "100")
    until(lambda: "running" in states(moat_bin).values())
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130


def test_a_command_may_handle_the_interrupt(begin: Begin, runtime: str) -> None:
    script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done"
    process = begin("--", "bash", "-c", script)
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == (b"caught\n", b"")
    assert process.returncode == 9


def test_a_second_interrupt_stops_what_ignores_the_first(begin: Begin, embedded: None) -> None:
    script = "trap '' INT; echo ready; while :; do sleep 0.05; done"
    process = begin("--", "bash", "-c", script)
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(2.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Ctrl-C again stops it" in err


def test_interrupting_the_preparation_leaves_nothing(
    begin: Begin, moat_bin: str, workspace: Path, home: Path, embedded: None
) -> None:
    process = begin("--", "touch", "ran")
    until(lambda: bool(list((home / ".moat").glob("runs/*/supervisor.log"))))
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    if not (workspace / "ran").exists():  # it may have been quicker
        assert set(states(moat_bin).values()) <= {"stopped", "failed"}


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["bash"], 0, "warning: without -i, bash has no terminal and no input: `moat run -i -- bash`"),
        (["bash", "-c", "true"], 0, None),
        (["no-such"], 127, "hint: `dependencies:` in agent.yaml bring programs"),
    ],
)
def test_what_a_person_is_told_of_a_command_that_does_nothing(  # noqa: PLR0917 - fixtures
    start: Start, workspace: Path, embedded: None, words: list[str], status: int, told: str | None
) -> None:
    """Seen to fail: a shell that was started without `-i` ended at once, without a word."""
    terminal = start("run", str(workspace), "--", *words)
    terminal.ends(status)
    said = terminal.shown()
    assert told in said if told else "moat:" not in said


def test_an_interrupt_between_start_and_attach_stops_the_run(
    home: Path, workspace: Path, embedded: None
) -> None:
    """Seen to fail: it was held for ten seconds, and then began where nobody saw it."""
    place = Home.from_environment()
    handle = launch.start(RunRequest(argv=("sleep", "100"), workspace=workspace, hold=True), home=place)
    with pytest.raises(KeyboardInterrupt), _stopped_when_interrupted(handle, place):
        raise KeyboardInterrupt
    record = read(place, handle.id)
    assert record
    assert (record.state, record.started_at) == (State.STOPPED, None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_run_outlives_its_command_line(  # noqa: PLR0917 - fixtures
    begin: Begin, moat_bin: str, moat: Moat, workspace: Path, embedded: None, number: signal.Signals
) -> None:
    process = begin("--name", "long", "--", "sh", "-c", "echo ready; sleep 2; echo done > here")
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    process.communicate(timeout=10)
    assert states(moat_bin)["long"] == "running"
    until((workspace / "here").exists)
    until(lambda: states(moat_bin)["long"] == "stopped")
    assert moat("logs", "long").stdout == "ready\n"


def test_detached(moat: Moat, moat_bin: str, runtime: str) -> None:
    done = moat("run", "-d", "--name", "bg", "--", "sh", "-c", "echo hello; sleep 60")
    assert done.returncode == 0, done.stderr
    run_id = done.stdout.strip()
    assert run_id.startswith("run_")
    assert states(moat_bin)["bg"] == "running"
    until(lambda: moat("logs", "bg").stdout == "hello\n")
    assert moat("stop", run_id).stdout == f"{run_id}\n"
    assert states(moat_bin)["bg"] == "stopped"


def test_detached_as_json(moat: Moat, embedded: None) -> None:
    done = moat("run", "-d", "--json", "--name", "bg", "--", "true")
    assert json.loads(done.stdout)["name"] == "bg"


def test_files_belong_to_the_workspace_s_owner(moat: Moat, workspace: Path, runtime: str) -> None:
    done = moat("run", "--", "sh", "-c", "echo hi > made; mkdir -p d/e; test $(id -u) != 0")
    assert done.returncode == 0, done.stderr
    for name in ("made", "d", "d/e"):
        assert (workspace / name).stat().st_uid == workspace.stat().st_uid


def test_a_directory_argument(moat: Moat, tmp_path: Path, embedded: None) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").touch()
    assert moat("run", str(other), "--", "ls").stdout == "file\n"


def test_the_file_and_the_flags(moat: Moat, workspace: Path, tmp_path: Path, embedded: None) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "x").write_text("mounted\n")
    (workspace / "agent.yaml").write_text(
        "name: from-file\nenv:\n  A: file\n  B: file\ncommand: [sh, -c, 'echo $A $B $C; cat /mnt/data/x']\n"
    )
    done = moat("run", "-e", "B=flag", "--env", "C=x=y", "--mount", f"{data}:/mnt/data:ro")
    assert done.stdout == "file flag x=y\nmounted\n", done.stderr
    assert moat("run", "-n", "from-flag", "--", "true").returncode == 0
    names = [run["name"] for run in json.loads(moat("list", "--json").stdout)]
    assert names == ["from-flag", "from-file"]


def test_the_user_cannot_lead_around_the_proxy(moat: Moat, embedded: None) -> None:
    done = moat("run", "-e", "https_proxy=http://elsewhere", "--", "sh", "-c", "echo $https_proxy")
    assert done.stdout == "http://127.0.0.1:3128\n"
    assert done.stderr.startswith("moat: warning: env https_proxy is ignored")


def test_a_configuration_that_does_not_count(moat: Moat, workspace: Path, embedded: None) -> None:
    """Seen to fail: whoever wrote `policy: strict` into it was not told that every host was open."""
    (workspace / "agent.yml").write_text("network: {policy: strict}\n")
    done = moat("run", "--", "true")
    assert done.stderr == "moat: warning: agent.yml is not read: rename it to agent.yaml\n"


def test_strict_policy_and_allow_host(moat: Moat, workspace: Path, embedded: None) -> None:
    (workspace / "agent.yaml").write_text("network:\n  policy: strict\n  rules:\n    - one.test\n")
    fetch = "for h in one two three; do curl -s -o /dev/null -w '%{http_code} ' http://$h.test/; done"
    assert moat("run", "--", "sh", "-c", fetch).stdout == "502 403 403 "
    assert moat("run", "--allow-host", "Two.test", "--", "sh", "-c", fetch).stdout == "502 502 403 "


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        ((), 2, "no command"),
        (("--",), 2, "no command"),
        (("--", ""), 2, "the command is an empty word"),
        (("ls",), 2, "no directory 'ls'"),
        (("-e", "novalue", "--", "true"), 2, "-e novalue"),
        (("--name", "Not A Name", "--", "true"), 2, "'Not A Name' is not a run name"),
        (("--mount", "nonsense", "--", "true"), 2, "nonsense"),
        (("--mount", "/nowhere:/mnt", "--", "true"), 2, "/nowhere"),
        (("--allow-host", "*.*.bad", "--", "true"), 2, "*.*.bad"),
        (("-g", "github", "-g", "claude", "--", "true"), 3, "missing grant: github"),
        (("-g", "nothing", "--", "true"), 3, "no provider 'nothing'"),
        (("--runtime", "gvisor", "--", "true"), 2, "gvisor"),
    ],
)
def test_what_cannot_start(
    moat: Moat, embedded: None, argv: tuple[str, ...], status: int, message: str
) -> None:
    done = moat("run", *argv)
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert json.loads(moat("list", "--json").stdout) == [], "nothing was made"


def test_all_missing_grants_with_their_fixes(moat: Moat, embedded: None) -> None:
    done = moat("run", "-g", "github", "-g", "claude", "-g", "anthropic", "--", "true")
    assert done.stderr.splitlines() == [
        "moat: error: missing grant: github",
        "moat: error: missing grant: anthropic",
        "moat: hint: run `moat grant github`",
        "moat: hint: run `moat grant anthropic`",
    ]


def test_a_workspace_that_holds_moat_s_own_state(moat: Moat, home: Path, embedded: None) -> None:
    done = moat("run", str(home), "--", "ls", "-a")
    assert done.returncode == 2
    assert "Moat's own state" in done.stderr


def test_a_workspace_that_is_the_kernel_s(moat: Moat, embedded: None) -> None:
    done = moat("run", "/proc", "--", "true")
    assert (done.returncode, "workspace /proc is the kernel's" in done.stderr) == (2, True)


def test_a_workspace_that_has_the_programs_of_this_machine(moat: Moat, embedded: None) -> None:
    """Seen to fail: from then on no program was found, and every run was told to install bubblewrap."""
    for place in ("/usr", "/usr/bin", "/dev"):
        done = moat("run", place, "--", "true")
        assert (done.returncode, f"workspace {place} is the system's" in done.stderr) == (2, True)
    assert json.loads(moat("list", "--json").stdout) == []


def test_a_current_directory_that_has_been_removed(moat_bin: str, tmp_path: Path, embedded: None) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'rmdir "$PWD"; exec "$0" run -- true'
    done = subprocess.run(
        ["sh", "-c", script, moat_bin], cwd=gone, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "moat: error: the current directory has been removed"


def test_all_mistakes_of_the_file_at_once(moat: Moat, workspace: Path, embedded: None) -> None:
    (workspace / "agent.yaml").write_text("nme: x\nnetwork:\n  polcy: strict\n")
    done = moat("run", "--", "true")
    assert done.returncode == 2
    assert "agent.yaml:1:1" in done.stderr
    assert "agent.yaml:3:3" in done.stderr


def test_a_command_that_is_not_there(moat: Moat, runtime: str) -> None:
    done = moat("run", "--", "no-such-command")
    assert done.returncode == 127
    assert "no-such-command" in done.stderr
    assert done.stdout == ""


def test_closed_standard_streams(moat_bin: str, workspace: Path, embedded: None) -> None:
    script = '"$0" run -- sh -c "echo out; exit 5" <&- 2>&-'
    done = subprocess.run(["sh", "-c", script, moat_bin], cwd=workspace, capture_output=True, timeout=30)
    assert (done.stdout, done.returncode) == (b"out\n", 5)
