"""A supervisor outlives whoever started it; whoever kills it leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moat.errors import GrantError, StartError
from moat.paths import Home, runtime_dir
from moat.runtime import control, forking, known, launch, records
from moat.runtime.control import Connection, Frame
from moat.runtime.forking import Fork
from moat.runtime.records import RunRecord, State
from moat.runtime.request import RunRequest
from moat.runtime.sandbox import Mount
from moat.runtime.supervisor import Starter, obey
from tests.runtime.single import single_threaded
from tests.runtime.survival_kit import until

pytestmark = pytest.mark.embedded


@pytest.fixture
def place(home: Path) -> Home:
    return Home.from_environment()


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "ws"
    path.mkdir()
    return path


def request(workspace: Path, *argv: str, **options: object) -> RunRequest:
    fields = {"runtime": "embedded"} | options
    return RunRequest(argv=argv, workspace=workspace, **fields)


@contextlib.contextmanager
def standing_by(*, fork: bool = True) -> Iterator[Fork | None]:
    """What `launch.start` takes: a fork that is ready for it, or nothing."""
    with launch.standby() if fork else contextlib.nullcontext() as ahead:
        yield ahead


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def record(place: Home, handle: launch.RunHandle) -> RunRecord:
    found = records.read(place, handle.id)
    assert found
    return found


@pytest.mark.parametrize("fork", [False, True])
@single_threaded
def test_it_leaves_the_caller_and_keeps_no_terminal(place: Home, workspace: Path, *, fork: bool) -> None:
    open_here = (workspace / "open").open("w")
    os.set_inheritable(open_here.fileno(), True)
    with standing_by(fork=fork) as ahead:
        assert bool(ahead) == fork
        handle = launch.start(request(workspace, "sleep", "100"), home=place, ahead=ahead)
    run = record(place, handle)
    name = Path(f"/proc/{run.pid}/cmdline").read_bytes()
    assert name.startswith(b"moat supervisor\0") == fork
    assert str(workspace / "open") not in open_files(run.pid)
    open_here.close()
    process = Path(f"/proc/{run.pid}")
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    parent, session, terminal = int(fields[1]), int(fields[3]), int(fields[4])
    assert parent != os.getpid()
    assert session == run.pid
    assert terminal == 0
    assert os.readlink(process / "cwd") == "/"
    assert os.readlink(process / "fd/0") == os.readlink(process / "fd/1") == "/dev/null"
    log = place.run(run.id) / "supervisor.log"
    assert os.readlink(process / "fd/2") == str(log)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    soft = next(line for line in (process / "limits").read_text().splitlines() if "open files" in line)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert int(soft.split()[3]) == min(65536, hard)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    os.kill(run.pid, signal.SIGTERM)
    until(lambda: not alive(run.pid))
    assert record(place, handle).state is State.STOPPED


def open_files(pid: int) -> set[str]:
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.add(os.readlink(entry))
    return found


@single_threaded
def test_what_may_not_be_forked(
    place: Home, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules in a directory that the agent writes to, whatever the link to it is called; another thread."""
    (tmp_path / "link").symlink_to(workspace / "lib")
    assert not forking.imports_from(workspace)
    with monkeypatch.context() as patch, standing_by() as ahead:
        assert ahead
        patch.setattr(sys, "path", [*sys.path, str(tmp_path / "link")])
        handle = launch.start(request(workspace, "sleep", "100"), home=place, ahead=ahead)
    assert b"moat supervisor" not in Path(f"/proc/{record(place, handle).pid}/cmdline").read_bytes()
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with standing_by() as ahead:
            assert ahead is None
    finally:
        done.set()
        thread.join()


@single_threaded
def test_one_that_has_not_said_who_it_is_is_stopped_with_its_starter(place: Home, workspace: Path) -> None:
    """Ctrl-C soon after `moat run`, and once more. Seen to fail: the command ran later, where nobody saw it."""

    def late() -> None:
        time.sleep(1)
        obey()

    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    with forking.forked(late) as ahead:
        signal.setitimer(signal.ITIMER_REAL, 0.5, 0.2)
        with pytest.raises(KeyboardInterrupt):
            launch.start(request(workspace, "sleep", "100"), home=place, ahead=ahead)
        signal.setitimer(signal.ITIMER_REAL, 0)
        ahead.stdout.read()  # whoever did not want to wait any longer
    assert {run.state for run in records.read_all(place)} <= {State.STOPPED}


def test_one_that_has_said_who_it_is_obeys(place: Home, workspace: Path) -> None:
    """Seen to fail: the signal killed it while it made the run, which then was lost."""
    root = str(Path(launch.__file__).parent.parent.parent)
    words = [sys.executable, "-P", "-c", launch._PROGRAM, root]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        with process.stdin as orders:
            orders.write(launch._message(place, request(workspace, "sleep", "100"), b""))
        os.kill(json.loads(process.stdout.readline())["pid"], signal.SIGTERM)
        process.stdout.read()
    assert [run.state for run in records.read_all(place)] == [State.STOPPED]


@single_threaded
def test_one_that_stands_by_in_vain_ends(place: Home) -> None:
    """Its starter had no use for it, or died before it had asked for the whole of a run."""
    for unfinished in (b"", b'{"home": "/ho'):
        with standing_by() as ahead:
            assert ahead
            ahead.stdin.write(unfinished)
            ahead.stdin.close()
            assert ahead.stdout.read() == b"", "it ends, and says nothing"
    assert not place.runs.exists()


def test_a_fork_imports_nothing_from_the_workspace(home: Path, workspace: Path) -> None:
    """`python -m moat` looks for modules in the current directory first. Seen to fail with `sys.path` as it was."""
    (workspace / "uvloop.py").write_text(f"open('{home}/planted', 'w').close()")
    words = [sys.executable, "-m", "moat", "run", "--runtime", "embedded", "--", "true"]
    subprocess.run(words, cwd=workspace, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    assert not (home / "planted").exists()


def test_what_is_on_the_command_line_of_a_fork_is_not_shown_by_ps(
    moat: Callable[..., subprocess.CompletedProcess[str]], home: Path
) -> None:
    done = moat("run", "-d", "--runtime", "embedded", "-e", "MARK=private", "--", "sleep", "100")
    run = records.read(Home(home / ".moat"), done.stdout.strip())
    assert run
    assert Path(f"/proc/{run.pid}/cmdline").read_bytes().rstrip(b"\0") == b"moat supervisor"
    moat("stop", run.id)


@pytest.mark.parametrize("fork", [False, True])
def test_neither_request_nor_vault_key_is_in_argv_or_environment(
    place: Home, workspace: Path, *, fork: bool
) -> None:
    with standing_by(fork=fork) as ahead:
        asked = request(workspace, "sleep", "100", env={"MARK": "in-the-request"})
        handle = launch.start(asked, home=place, ahead=ahead)
    pid = record(place, handle).pid
    process = Path(f"/proc/{pid}")
    shown = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
    assert b"in-the-request" not in shown
    assert b"in-the-request" not in (place.run(handle.id) / "supervisor.log").read_bytes()
    os.kill(pid, signal.SIGTERM)  # a fork has the environment of pytest: nobody else would find it
    until(lambda: not alive(pid))


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_both_event_loops(place: Home, workspace: Path, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOAT_LOOP", loop)
    handle = launch.start(request(workspace, "sleep", "100"), home=place)
    maps = Path(f"/proc/{record(place, handle).pid}/maps").read_text()
    assert ("uvloop/loop" in maps) == (loop == "uvloop")


@single_threaded
def test_what_an_option_put_into_the_environment_reaches_one_that_stands_by(
    place: Home, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--profile` is kept there. Seen to fail with the environment that the fork was made with."""
    with tempfile.TemporaryDirectory(prefix="mt-", dir="/tmp") as elsewhere:
        with standing_by() as ahead:
            monkeypatch.setenv("XDG_RUNTIME_DIR", elsewhere)
            handle = launch.start(request(workspace, "sleep", "100"), home=place, ahead=ahead)
        run = record(place, handle)
        os.kill(run.pid, signal.SIGTERM)
        until(lambda: not alive(run.pid))
    assert run.directory.startswith(elsewhere)


@pytest.mark.parametrize("fork", [False, True])
def test_errors_before_the_start_come_back_as_they_are(place: Home, workspace: Path, *, fork: bool) -> None:
    with standing_by(fork=fork) as ahead, pytest.raises(GrantError) as caught:
        launch.start(request(workspace, "true", grants=("github",)), home=place, ahead=ahead)
    assert str(caught.value) == "missing grant: github"
    assert caught.value.hint == "run `moat grant github`"
    run = known.all_runs(place)[0]
    assert (run.state, run.error) == (State.FAILED, "missing grant: github")
    assert {path.name for path in runtime_dir().iterdir()} <= {"keyring.lock"}
    place_of_socket = workspace / "some.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place_of_socket))
    mounted = request(workspace, "true", mounts=(Mount(place_of_socket, "/mnt/s"),))
    with pytest.raises(StartError, match="cannot mount"):
        launch.start(mounted, home=place)


def test_a_supervisor_that_cannot_even_begin_is_reported(
    place: Home, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'no such interpreter' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(StartError, match="the supervisor of the run died: no such interpreter"):
        launch.start(request(workspace, "true"), home=place)


def test_with_hold_the_command_waits_for_the_first_viewer(place: Home, workspace: Path) -> None:
    handle = launch.start(request(workspace, "sh", "-c", "touch ran; echo hi", hold=True), home=place)
    time.sleep(0.5)
    assert not (workspace / "ran").exists()
    assert record(place, handle).state is State.STARTING
    with Connection(handle.socket, "view", lead=True) as viewer:
        frames = []
        while frame := viewer.receive():
            frames.append(frame)
    assert frames[0] == (Frame.STDOUT, b"hi\n")
    assert frames[-1][0] is Frame.EXIT
    assert control.unpack_json(frames[-1][1])["exit_code"] == 0
    assert record(place, handle).state is State.STOPPED, "recorded before anybody is told"


def test_killing_the_caller_leaves_the_run(place: Home, workspace: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from moat.paths import Home;"
        "from moat.runtime import launch; from moat.runtime.request import RunRequest;"
        "h = launch.start(RunRequest(argv=('sh', '-c', 'sleep 1; echo still here'), workspace=Path(sys.argv[1]),"
        " runtime='embedded')); print(h.id, flush=True); time.sleep(100)"
    )
    caller = subprocess.Popen(
        [sys.executable, "-c", script, str(workspace)], stdout=subprocess.PIPE, text=True
    )
    assert caller.stdout
    run_id = caller.stdout.readline().strip()
    caller.kill()
    caller.communicate()
    until(lambda: bool((found := records.read(place, run_id)) and found.state.ended))
    found = records.read(place, run_id)
    assert found
    assert (found.state, found.exit_code) == (State.STOPPED, 0)
    assert (place.run(run_id) / "output.log").read_bytes() == b"still here\n"


def test_killing_the_supervisor_ends_the_sandbox_and_the_warden_clears_up(
    place: Home, workspace: Path
) -> None:
    script = "while :; do date +%N > beat; sleep 0.05; done"
    handle = launch.start(request(workspace, "sh", "-c", script), home=place)
    beat = workspace / "beat"
    until(beat.exists)
    run = record(place, handle)
    os.kill(run.pid, signal.SIGKILL)
    until(lambda: record(place, handle).state is State.LOST)  # written by its warden
    until(lambda: not record(place, handle).directory)
    (found,) = known.all_runs(place)
    assert found.error == "the supervisor was killed"
    last = beat.read_text()
    time.sleep(0.3)
    assert beat.read_text() == last, "nothing of the sandbox runs any more"
    assert {path.name for path in runtime_dir().iterdir()} <= {"keyring.lock"}
    known.remove(place, found)
    assert known.all_runs(place) == []


def test_sigterm_stops_a_run_that_ignores_it_after_the_grace(place: Home, workspace: Path) -> None:
    script = "trap '' TERM; touch ready; while :; do sleep 0.05; done"
    handle = launch.start(request(workspace, "sh", "-c", script), home=place)
    until((workspace / "ready").exists)
    with Connection(handle.socket, "control") as run:
        run.send(control.pack(Frame.STOP, struct.pack(">d", 0.3)))
        frame = run.receive()
    assert frame
    assert frame[0] is Frame.EXIT
    ended = control.unpack_json(frame[1])
    assert (ended["state"], ended["exit_code"]) == ("stopped", 137)


class TestControlSocket:
    @pytest.fixture
    def handle(self, place: Home, workspace: Path) -> launch.RunHandle:
        return launch.start(request(workspace, "sh", "-c", "echo hi; cat; echo end", stdin=True), home=place)

    def test_modes(self, handle: launch.RunHandle) -> None:
        assert stat.S_IMODE(handle.socket.stat().st_mode) == 0o600
        assert stat.S_IMODE(handle.socket.parent.stat().st_mode) == 0o700
        assert len(os.fsencode(handle.socket)) < 100

    def test_status(self, handle: launch.RunHandle) -> None:
        with Connection(handle.socket, "control") as run:
            assert run.record["id"] == handle.id
            assert run.record["state"] == "running"

    def test_nonsense_harms_nobody_but_who_sends_it(self, handle: launch.RunHandle) -> None:
        for nonsense in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"\0" * 100,
            control.pack(Frame.INPUT, b"x"),
            control.pack(Frame.HELLO, b"[]"),
            control.pack_json(Frame.HELLO, {"role": "owner"}),
            control.hello("control") + control.pack(Frame.INPUT, b"x"),
            control.hello("view") + control.pack(Frame.RESIZE, b"x"),
            control.hello("view") + control.pack(Frame.SIGNAL, b""),
            control.hello("input") + control.pack(Frame.SIGNAL, b"\x09"),
        ):
            with socket.socket(socket.AF_UNIX) as peer:
                peer.settimeout(10)
                peer.connect(str(handle.socket))
                peer.sendall(nonsense)
                try:
                    while peer.recv(65536):
                        pass
                except ConnectionResetError:
                    pass  # what we sent was not read to its end
            with Connection(handle.socket, "control") as run:
                assert run.record["state"] == "running", nonsense

    def test_two_viewers_and_input(self, handle: launch.RunHandle) -> None:
        with Connection(handle.socket, "view") as first, Connection(handle.socket, "view") as second:
            with Connection(handle.socket, "input") as stdin:
                stdin.send(control.pack(Frame.INPUT, b"typed\n") + control.pack(Frame.CLOSE_STDIN))
                for viewer in (first, second):
                    seen = b""
                    while (frame := viewer.receive()) and frame[0] is Frame.STDOUT:
                        seen += frame[1]
                    assert seen == b"hi\ntyped\nend\n"
                    assert frame
                    assert control.unpack_json(frame[1])["exit_code"] == 0

    def test_a_stuck_viewer_does_not_hold_up_the_run(self, place: Home, workspace: Path) -> None:
        script = "head -c 20000000 /dev/zero; touch done"
        handle = launch.start(request(workspace, "sh", "-c", f"read x; {script}", stdin=True), home=place)
        with Connection(handle.socket, "view"), Connection(handle.socket, "input") as stdin:
            stdin.send(control.pack(Frame.INPUT, b"go\n"))
            until((workspace / "done").exists, 20)
        until(lambda: record(place, handle).state.ended)
        assert (place.run(handle.id) / "output.log").stat().st_size == 20000000

    def test_the_lead_of_a_plain_run_may_be_as_slow_as_it_likes(self, place: Home, workspace: Path) -> None:
        script = "head -c 20000000 /dev/zero; touch done"
        handle = launch.start(request(workspace, "sh", "-c", script, hold=True), home=place)
        with Connection(handle.socket, "view", lead=True) as lead:
            time.sleep(6)  # longer than anybody else's patience
            assert not (workspace / "done").exists()
            seen = 0
            while (frame := lead.receive()) and frame[0] is Frame.STDOUT:
                seen += len(frame[1])
            assert seen == 20000000


def test_a_log_that_cannot_grow_is_recorded_and_told_and_blocks_nothing(place: Home, workspace: Path) -> None:
    """The limit on file size stands for a full disk: write() fails in the middle of the output."""
    script = "head -c 100000 /dev/zero; echo; echo end"
    handle = launch.start(request(workspace, "sh", "-c", script, hold=True), home=place)
    resource.prlimit(record(place, handle).pid, resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
    with Connection(handle.socket, "view", lead=True) as viewer:
        frames = list(iter(viewer.receive, None))
    out = b"".join(data for kind, data in frames if kind is Frame.STDOUT)
    assert out == b"\0" * 100000 + b"\nend\n", "the viewer misses nothing"
    told = [data.decode() for kind, data in frames if kind is Frame.NOTICE]
    assert told == ["the log of this run has a hole: output.log: File too large"]
    found = record(place, handle)
    assert (found.state, found.exit_code) == (State.STOPPED, 0)
    assert found.log_error == "output.log: File too large"


def test_stopping_a_run_whose_reader_does_not_read(place: Home, workspace: Path) -> None:
    """`moat run -- yes | less`, and `moat stop` from another terminal."""
    handle = launch.start(request(workspace, "yes", hold=True), home=place)
    with Connection(handle.socket, "view", lead=True), Connection(handle.socket, "control") as run:
        time.sleep(1)
        run.send(control.pack(Frame.STOP, struct.pack(">d", 5.0)))
        run.socket.settimeout(10)
        frame = run.receive()
        assert frame
        assert frame[0] is Frame.EXIT
        assert record(place, handle).state is State.STOPPED


def test_a_run_that_was_deleted_while_it_ran_ends(place: Home, workspace: Path) -> None:
    handle = launch.start(request(workspace, "sleep", "100"), home=place)
    pid = record(place, handle).pid
    shutil.rmtree(place.root)
    until(lambda: not alive(pid))
    assert not place.root.exists(), "nothing is written for a run that nobody wants to know of"
    assert {path.name for path in runtime_dir().iterdir()} <= {"keyring.lock"}


@pytest.mark.docker
def test_a_killed_supervisor_leaves_no_container(place: Home, workspace: Path) -> None:
    handle = launch.start(request(workspace, "sleep", "100", runtime="docker"), home=place)
    label = ["docker", "ps", "-aq", "--filter", f"label=moat.run={handle.id}"]
    assert subprocess.run(label, capture_output=True, text=True, check=True).stdout.strip()
    pid = record(place, handle).pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid))
    assert known.all_runs(place)[0].error == "the supervisor was killed"
    assert not subprocess.run(label, capture_output=True, text=True, check=True).stdout.strip()
    assert {path.name for path in runtime_dir().iterdir()} <= {"keyring.lock"}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_run_that_cannot_be_written_says_what_helps(code: int) -> None:
    """Wherever in a start the disk turns out to be full: a bare `[Errno 28]` was all that was told."""
    theirs, ours = os.pipe()
    with open(theirs) as told:
        starter = Starter(ours)
        starter.error(OSError(code, os.strerror(code), "a/file"))
        starter.goodbye()
        error = json.loads(told.read())["error"]
    assert error["message"] == f"what a run needs cannot be written: {os.strerror(code)} (a/file)"
    assert "moat clean" in error["hint"]
