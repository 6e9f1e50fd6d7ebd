"""A launcher that waits for its plan: what it gets, and that it is gone whenever it gets none."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moat.errors import StartError
from moat.runtime import cgroup
from moat.runtime.embedded import EmbeddedRuntime
from moat.runtime.procfs import MARK
from moat.runtime.standby import stand_by
from tests.runtime.embedded_kit import FakeEgress, Order, processes, spec_of, wait_until

pytestmark = pytest.mark.embedded

_HANDED = """
import os, socket, sys
from moat.runtime import handover
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
wanted = [*range(40, 40 + int(sys.argv[1])), 0, 1, theirs.fileno()]  # its own number is wanted as well
if os.fork() == 0:
    kept = os.memfd_create("kept")
    os.write(kept, b"kept")
    wanted.append(os.dup2(kept, 500))  # and so is the number of what is to be kept
    first, control, (kept,) = handover.take(theirs, 500)
    told = [os.pread(number, 9, 0).decode() for number in wanted]
    assert os.pread(kept, 9, 0) == b"kept"
    inherited = all(map(os.get_inheritable, wanted)) and not os.get_inheritable(control.fileno())
    control.send(repr((first, told, inherited)).encode())
    os._exit(0)
fds = []
for number in [*wanted, 500]:
    fds.append((os.memfd_create("x"), number))
    os.write(fds[-1][0], str(number).encode())
handover.send(ours, fds)
first, told, inherited = eval(ours.recv(65536))
assert (first, told, inherited) == (40, [str(number) for number in [*wanted, 500]], True), (first, told, inherited)
"""


def marked(run_id: str) -> list[int]:
    """Every process of the run, asleep or not."""
    mark = f"{MARK}={run_id}".encode()
    return [pid for pid in processes() if mark in _environment(pid)]


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


@pytest.mark.parametrize("count", [1, 197, 198, 450])
def test_descriptors_arrive_under_their_numbers(count: int) -> None:
    subprocess.run([sys.executable, "-c", _HANDED, str(count)], check=True, timeout=30)


@pytest.mark.parametrize("early", [True, False], ids=["at once", "when it waits"])
def test_it_ends_with_whoever_could_have_sent_it_a_plan(tmp_path: Path, early: bool) -> None:
    run_id = f"run_{tmp_path.name}"
    program = (
        "import sys, time; from moat.runtime.standby import stand_by; "
        f"held = stand_by({run_id!r}, memory=1 << 30, pids=99); print('up', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as owner:
        assert owner.stdout
        assert owner.stdout.readline() == b"up\n"
        if not early:
            assert wait_until(lambda: bool(marked(run_id)), 5)
            time.sleep(0.2)
        owner.send_signal(signal.SIGKILL)
    assert wait_until(lambda: not marked(run_id), 5)
    asyncio.run(EmbeddedRuntime().reap(run_id))
    assert cgroup.find(run_id).directories == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="this machine's control groups are root's")
def test_the_launcher_is_held_to_the_limits_before_it_has_a_plan_and_its_attendant_is_not() -> None:
    run_id = f"run_{os.getpid()}"
    ahead = stand_by(run_id, memory=1 << 30, pids=99)
    try:
        assert set(ahead.group.directories) == {"memory", "pids"}
        groups = [directory / "cgroup.procs" for directory in ahead.group.directories.values()]
        inside = f"{ahead.process.pid}\n"
        assert wait_until(lambda: [path.read_text() for path in groups] == [inside] * 2, 5)
        assert len(marked(run_id)) == 2
    finally:
        ahead.dismiss()
        assert ahead.group.remove()
    assert marked(run_id) == []


def test_a_run_that_fails_before_there_is_a_plan_leaves_none(tmp_path: Path) -> None:
    run_id = f"run_{tmp_path.name}"
    spec = spec_of(Order(["true"], host_ports=tuple(range(20000, 20201))), tmp_path, run_id)
    before = len(os.listdir("/proc/self/fd"))

    async def main() -> None:
        runtime = EmbeddedRuntime()
        runtime.get_ready(run_id, memory=0, pids=99, cpus=0.0)
        try:
            await runtime.create(spec, FakeEgress(), lambda _line: None)
        finally:
            await runtime.aclose()

    with pytest.raises(StartError, match="host ports"):
        asyncio.run(main())
    assert marked(run_id) == []
    assert cgroup.find(run_id).directories == {}
    assert len(os.listdir("/proc/self/fd")) <= before


def test_one_that_died_is_told_of(tmp_path: Path) -> None:
    run_id = f"run_{tmp_path.name}"

    async def main() -> None:
        runtime = EmbeddedRuntime()
        runtime._ahead = ahead = stand_by(run_id, memory=1 << 30, pids=99)
        ahead.process.kill()  # nobody has waited for it yet, as nobody does while it stands by
        assert wait_until(lambda: ahead.process.pid not in processes(), 5)
        await runtime.create(spec_of(Order(["true"]), tmp_path, run_id), FakeEgress(), lambda _line: None)

    with pytest.raises(StartError, match="bubblewrap could not make a sandbox"):
        asyncio.run(main())
    assert marked(run_id) == []
