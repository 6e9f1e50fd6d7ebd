"""`moat exec`: a further command in the sandbox of a run, inside of the same fence."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pexpect
import pytest

from moat.paths import Home
from moat.runtime import bwrap, records
from moat.runtime.sandbox import Execution, Output
from tests.namespaces import apart
from tests.runtime.embedded_kit import EVERYBODY, run, sandbox

Moat = Callable[..., subprocess.CompletedProcess[str]]
BOTH = [
    pytest.param("embedded", marks=pytest.mark.embedded),
    pytest.param("docker", marks=pytest.mark.docker),
]
# What the run's own command sees and may, told by whoever runs it.
PROBE = """\
import ctypes, json, os, socket, sys, urllib.error, urllib.request
def refused(call):
    try:
        call()
    except OSError as error:
        return type(error).__name__
    return ""
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
try:
    proxied = urllib.request.urlopen("http://169.254.169.254/", timeout=5).status
except urllib.error.HTTPError as error:
    proxied = error.code
libc = ctypes.CDLL(None, use_errno=True)
print(json.dumps({
    "who": [os.getuid(), os.getgid(), os.getcwd()],
    "held": {name: status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")},
    "namespaces": {name: os.readlink(f"/proc/self/ns/{name}") for name in ("user", "mnt", "pid", "net", "ipc", "uts")},
    "root": [os.stat("/").st_dev, os.stat("/").st_ino],
    "files": sorted(os.listdir("/proc/self/fd")),
    "limits": open("/proc/self/limits").read(),
    "group": open("/proc/self/cgroup").read(),
    "environment": {name: value for name, value in os.environ.items() if name not in ("_", "SHLVL", "LC_CTYPE", "PWD", "OLDPWD")},
    "outside": refused(lambda: socket.create_connection(("192.0.2.1", 80), 2)),
    "vsock": refused(lambda: socket.socket(40)),
    "namespace": libc.unshare(0x10000000),
    "mount": libc.mount(b"none", b"/tmp", b"tmpfs", 0, None),
    "proxied": proxied,
    "terminal": os.isatty(0),
}))
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "workspace"
    path.mkdir()
    (path / "probe.py").write_text(PROBE)
    os.chown(path, 4321, 4321)  # not the user's own: signals must reach the command all the same
    return path


@pytest.mark.parametrize("runtime", BOTH)
def test_a_further_command(workspace: Path, moat: Moat, moat_bin: str, runtime: str) -> None:
    """Seen failing without `_give_up` (capabilities) and without `seccomp.install` in `enter` (the filter)."""
    script = "python3 probe.py > own.new; mv own.new own; sleep 200"
    argv = ("run", "-d", "--runtime", runtime, "--name", "x", "--no-snapshots", "--", "sh", "-c", script)
    assert moat(*argv, cwd=workspace).returncode == 0
    deadline = time.monotonic() + 20
    while not (workspace / "own").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    own = json.loads((workspace / "own").read_text())

    done = moat("exec", "x", "--", "python3", "probe.py")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["proxied"] == 403
    assert seen == own

    piped = moat("exec", "--", "sh", "-c", "cat; echo aside >&2; exit 7", input="a\0b" * 100_000)
    assert (piped.stdout, piped.stderr, piped.returncode) == ("a\0b" * 100_000, "aside\n", 7)
    assert moat("exec", "x", "--", "sh", "-c", "kill -9 $$").returncode == 137
    missing = moat("exec", "x", "--", "no-such-command")
    assert (missing.stderr, missing.returncode) == ("moat: no-such-command: command not found\n", 127)
    assert moat("exec", "x", "--", "/etc").returncode == 126
    assert moat("exec", "x").returncode == 2

    _at_a_terminal(moat_bin)
    _interrupted([moat_bin, "exec", "x", "--", "sh", "-c"], workspace)
    record = records.read_all(Home.from_environment())[0]
    journal = moat("audit", "x", "--json").stdout
    assert '"run.executed"' in journal

    long = subprocess.Popen([moat_bin, "exec", "x", "--", "sleep", "100"], stderr=subprocess.PIPE, text=True)
    time.sleep(1)
    assert moat("stop", "x", "-t", "1").returncode == 0
    _, complaint = long.communicate(timeout=20)
    assert long.returncode in {3, 137}, complaint
    late = moat("exec", record.id, "--", "true")
    assert (late.returncode, "has ended (stopped)" in late.stderr) == (3, True)


@pytest.mark.embedded
@pytest.mark.parametrize("who", EVERYBODY)
def test_entering_an_embedded_sandbox_as_root_and_as_an_ordinary_user(who: str) -> None:
    script = "grep -h -e ^Cap -e ^NoNew -e ^Seccomp: /proc/self/status; ls /proc/self/fd | wc -l; ls /; id -u"
    told = run("sleep", "100", who=who, beside=["sh", "-c", script])
    assert told.status == 0, told.stderr
    assert len(re.findall(r"^Cap\w+:\t0{16}$", told.stdout, re.MULTILINE)) == 5
    assert "NoNewPrivs:\t1\nSeccomp:\t2\n4\n" in told.stdout
    assert "workspace\n" in told.stdout
    assert told.stdout.splitlines()[-1] != "0"


@pytest.mark.embedded
def test_nothing_enters_a_sandbox_that_bubblewrap_still_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then the host's tree is beside it (`oldroot`), and nobody's ids are mapped: "Invalid argument" was told.

    Seen failing without waiting for the command.
    """
    ours, theirs = os.pipe()
    data = bwrap.Arguments.data

    def late(self: bwrap.Arguments, content: bytes) -> int:
        if content != b"late":
            return data(self, content)
        self.fds.append(ours)  # bubblewrap waits for its end
        return ours

    async def enter() -> tuple[bool, bytes]:
        async with sandbox("sleep", "100", home_files=[("late", "late", 0o644)]) as made:
            await made.start()
            entering = asyncio.ensure_future(made.execute(("ls", "/"), tty=None, stdin=False))
            await asyncio.sleep(0.3)
            early = entering.done()
            os.close(theirs)
            told = await entering
            said = b"".join([output.data async for output in _outputs(told)])
            await told.close()
            return early, said

    monkeypatch.setattr(bwrap.Arguments, "data", late)
    early, said = asyncio.run(enter())
    assert b"oldroot" not in said, said
    assert b"workspace\n" in said
    assert not early


def test_a_command_waits_for_the_first_one_of_its_container() -> None:
    """Which compares the mounts, and then listens as the proxy. Seen failing without waiting."""
    program = """if True:
        import socket, subprocess, sys, time
        command = [sys.executable, "-I", sys.argv[1], "--exec", "--", "date", "+%s.%N"]
        entering = subprocess.Popen(command, stdout=subprocess.PIPE)
        time.sleep(0.5)
        listening = time.time()
        first = socket.create_server(("127.0.0.1", 3128))
        print(float(entering.communicate(timeout=20)[0]) - listening)
    """
    alone = [*apart("--net"), sys.executable, "-I", "-c", program]
    init = Path(bwrap.__file__).with_name(
        "sandbox_init.py"
    )  # its import puts moat/runtime before all packages
    done = subprocess.run([*alone, init], capture_output=True, text=True, timeout=30)
    assert 0 < float(done.stdout) < 2, done.stderr


async def _outputs(told: Execution) -> AsyncIterator[Output]:
    while output := await told.read():
        yield output


def _at_a_terminal(moat_bin: str) -> None:
    """Of the right size, with the keys that end things, and put back afterwards."""
    for said, told in (("vt100", "xterm-256color"), ("dumb", "dumb")):  # as the run itself has it
        environment = {**os.environ, "TERM": said}
        ask = ["exec", "-i", "x", "--", "sh", "-c", "echo on a $TERM"]
        seen, status = pexpect.run(
            shlex.join([moat_bin, *ask]), env=environment, withexitstatus=True, timeout=20
        )
        assert (seen, status) == (f"on a {told}\r\n".encode(), 0)
    with pexpect.spawn(moat_bin, ["exec", "-i", "x", "--", "bash", "--norc"], dimensions=(30, 90)) as shell:
        shell.expect(r"\$ ")
        shell.sendline("stty size")
        shell.expect("30 90")
        shell.setwinsize(40, 100)
        time.sleep(0.5)
        shell.sendline("stty size")
        shell.expect("40 100")
        shell.sendline("sleep 100")
        time.sleep(0.3)
        shell.send("\x03")
        shell.sendline("echo $?-after")
        shell.expect("130-after")
        shell.sendline("exit 5")
        shell.expect(pexpect.EOF)
        shell.close()
        assert shell.exitstatus == 5


def _interrupted(argv: list[str], workspace: Path) -> None:
    """Ctrl-C reaches the command; one whose user is gone does not go on."""
    script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done"
    with subprocess.Popen([*argv, script], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout
        assert command.stdout.readline() == "ready\n"
        command.send_signal(signal.SIGINT)
        assert command.stdout.readline() == "caught\n"
        assert command.wait(20) == 9
    script = "echo ready; while :; do date +%N > beat; sleep 0.05; done"
    with subprocess.Popen([*argv, script], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout
        assert command.stdout.readline() == "ready\n"
        command.kill()
    beat = workspace / "beat"
    deadline = time.monotonic() + 20
    while _changes(beat):
        assert time.monotonic() < deadline, "it goes on"


def _changes(beat: Path) -> bool:
    before = beat.read_text() if beat.exists() else ""
    time.sleep(0.3)
    return beat.exists() and beat.read_text() != before
