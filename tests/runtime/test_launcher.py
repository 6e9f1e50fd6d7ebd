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
from moat.runtime import launcher
from moat.runtime.embedded import EmbeddedRuntime
from moat.runtime.procfs import MARK
from tests.runtime.embedded_kit import FakeEgress, Order, processes, spec_of, wait_until

pytestmark = pytest.mark.embedded

_HANDED = """
import os, socket, sys
from moat.runtime import handover
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
wanted = [*range(40, 40 + int(sys.argv[1])), 0, 1, theirs.fileno()]  # its own number is wanted as well
if os.fork() == 0:
    control, first = handover.take(theirs)
    told = [os.pread(number, 9, 0).decode() for number in wanted]
    inherited = all(map(os.get_inheritable, wanted)) and not os.get_inheritable(control.fileno())
    control.send(repr((first, told, inherited)).encode())
    os._exit(0)
fds = []
for number in wanted:
    fds.append((os.memfd_create("x"), number))
    os.write(fds[-1][0], str(number).encode())
handover.send(ours, fds)
first, told, inherited = eval(ours.recv(65536))
assert (first, told, inherited) == (40, [str(number) for number in wanted], True), (first, told, inherited)
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
        "import sys, time; from moat.runtime import launcher; "
        f"held = launcher.stand_by({run_id!r}); print('up', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as owner:
        assert owner.stdout
        assert owner.stdout.readline() == b"up\n"
        if not early:
            assert wait_until(lambda: bool(marked(run_id)), 5)
            time.sleep(0.2)
        owner.send_signal(signal.SIGKILL)
    assert wait_until(lambda: not marked(run_id), 5)


def test_a_run_that_fails_before_there_is_a_plan_leaves_none(tmp_path: Path) -> None:
    run_id = f"run_{tmp_path.name}"
    spec = spec_of(Order(["true"], host_ports=tuple(range(20000, 20201))), tmp_path, run_id)
    before = len(os.listdir("/proc/self/fd"))

    async def main() -> None:
        runtime = EmbeddedRuntime()
        runtime.get_ready(run_id)
        try:
            await runtime.create(spec, FakeEgress(), lambda _line: None)
        finally:
            await runtime.aclose()

    with pytest.raises(StartError, match="host ports"):
        asyncio.run(main())
    assert marked(run_id) == []
    assert len(os.listdir("/proc/self/fd")) <= before


def test_one_that_died_is_told_of(tmp_path: Path) -> None:
    run_id = f"run_{tmp_path.name}"

    async def main() -> None:
        runtime = EmbeddedRuntime()
        runtime._ahead = ahead = launcher.stand_by(run_id)
        ahead.process.kill()  # nobody has waited for it yet, as nobody does while it stands by
        assert wait_until(lambda: ahead.process.pid not in processes(), 5)
        await runtime.create(spec_of(Order(["true"]), tmp_path, run_id), FakeEgress(), lambda _line: None)

    with pytest.raises(StartError, match="bubblewrap could not make a sandbox"):
        asyncio.run(main())
    assert marked(run_id) == []
