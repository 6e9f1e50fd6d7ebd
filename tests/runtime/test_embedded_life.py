"""A sandbox's end: it leaves nothing, however it ends, and its limits hold while it lives."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from moat.errors import StartError
from moat.runtime import cgroup
from moat.runtime.embedded import EmbeddedRuntime
from moat.runtime.procfs import MARK
from moat.runtime.sandbox import EgressSockets
from tests.runtime.embedded_kit import (
    EVERYBODY,
    SYSTEM_PYTHON,
    FakeEgress,
    Order,
    collect,
    held,
    processes,
    run,
    sandbox,
    spec_of,
    wait_until,
)

pytestmark = pytest.mark.embedded
everybody = pytest.mark.parametrize("who", EVERYBODY)


def sleeper() -> tuple[list[str], str]:
    """A command with children that left its session, and what all of their command lines contain."""
    number = f"98{time.monotonic_ns() % 10**9}"
    return [
        "sh",
        "-c",
        f"sleep {number} & setsid sleep {number} & touch /workspace/ran; echo up; exec sleep {number}",
    ], number


def alive(text: str) -> list[str]:
    return [line for line in processes().values() if text in line]


def marked(run_id: str) -> list[int]:
    """Bubblewrap and the attendant of the run."""
    mark = f"{MARK}={run_id}".encode()
    found = []
    for pid in processes():
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def attendants(run_id: str) -> list[int]:
    lines = processes()
    return [pid for pid in marked(run_id) if "moat.runtime.namespace" in lines.get(pid, "")]


# Nothing is left


def test_destroy_leaves_no_process_mount_descriptor_group_or_directory(tmp_path: Path) -> None:
    """Shown to fail without `_remove` (control group) and without closing the control socket (attendant)."""
    argv, number = sleeper()

    def world() -> tuple[object, ...]:
        mounts = Path("/proc/mounts").read_text().splitlines()  # engines at work on this machine have theirs
        ours = [line for line in mounts if line.startswith("moat ") or str(tmp_path) in line]
        return ours, marked(f"run_{tmp_path.name}")

    async def once(*, started: bool, destroyed: int) -> None:
        egress = FakeEgress()
        spec = spec_of(Order(argv), tmp_path, f"run_{tmp_path.name}")
        made = await EmbeddedRuntime().create(spec, egress, lambda _line: None)
        if started:
            await made.start()
            await made.read()
            assert len(alive(number)) >= 3
        for _ in range(destroyed):
            await made.destroy()
        await egress.aclose()
        assert await made.read() is None
        assert await made.wait() == 137
        await made.write(b"x")
        await made.signal(signal.SIGTERM)

    async def main() -> None:
        await once(started=True, destroyed=1)  # asyncio and the allocator have warmed up
        before, descriptors = world(), sorted(os.listdir("/proc/self/fd"))
        for started in (True, False):
            await once(started=started, destroyed=2)
            assert sorted(os.listdir("/proc/self/fd")) == descriptors
            assert cgroup.find(f"run_{tmp_path.name}").directories == {}
        assert world() == before

    asyncio.run(main())
    assert alive(number) == []
    assert marked(f"run_{tmp_path.name}") == []


def test_two_destroys_at_once_are_one() -> None:
    async def main() -> None:
        async with sandbox("sleep", "60") as made:
            await made.start()
            async with asyncio.TaskGroup() as group:
                group.create_task(made.destroy())
                group.create_task(made.destroy())

    asyncio.run(main())


def test_processes_that_the_command_leaves_behind_end_with_it() -> None:
    argv, number = sleeper()
    code = argv[2].replace("exec sleep", "exit 5 #")

    async def main() -> int:
        async with sandbox("sh", "-c", code) as made:
            await made.start()
            await collect(made)
            return await made.wait()

    assert asyncio.run(main()) == 5
    assert wait_until(lambda: not alive(number), 2)


class _Broken:
    async def serve_unix(self, path: Path, uid: int) -> None: ...

    async def serve_sockets(self, sockets: EgressSockets) -> None:
        raise StartError("no egress")


def test_a_run_whose_egress_fails_leaves_nothing(tmp_path: Path) -> None:
    argv, number = sleeper()
    spec = spec_of(Order(argv), tmp_path, f"run_{tmp_path.name}")
    with pytest.raises(StartError, match="no egress"):
        asyncio.run(EmbeddedRuntime().create(spec, _Broken(), lambda _line: None))
    assert marked(spec.run_id) == []
    assert alive(number) == []


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03, 0.06, 0.09])
def test_a_start_that_is_cancelled_leaves_nothing(tmp_path: Path, delay: float) -> None:
    argv, number = sleeper()
    spec = spec_of(Order(argv), tmp_path, f"run_{tmp_path.name}")
    egress = FakeEgress()

    async def main() -> None:
        async with asyncio.timeout(delay):
            made = await EmbeddedRuntime().create(spec, egress, lambda _line: None)
        await made.destroy()  # it was quicker than the delay

    descriptors = len(os.listdir("/proc/self/fd"))
    with contextlib.suppress(TimeoutError):
        asyncio.run(main())
    asyncio.run(egress.aclose())
    assert marked(spec.run_id) == []
    assert alive(number) == []
    assert len(os.listdir("/proc/self/fd")) <= descriptors


# The supervisor is killed


@everybody
@pytest.mark.parametrize("started", [True, False])
def test_a_killed_supervisor_takes_the_sandbox_with_it(who: str, started: bool) -> None:
    """Shown to fail, for a run that has not started, without the attendant.

    Bubblewrap's inner process asks for its death signal only after the release. The command ran (`ran` was
    made) with a gate that gives end of file when the supervisor dies. With neither `--die-with-parent` nor the attendant it fails for every run.
    """
    argv, number = sleeper()
    with held(who, started=started, argv=argv) as (process, about):
        assert marked(about["run_id"])
        assert len(alive(number)) >= (3 if started else 1)
        process.send_signal(signal.SIGKILL)
        assert wait_until(lambda: not marked(about["run_id"]) and not alive(number), 2)
        assert Path(about["workspace"], "ran").exists() == started


@everybody
def test_the_kernel_ends_the_sandbox_even_without_the_attendant(who: str) -> None:
    """Shown to fail without `--die-with-parent`. The uid change of a run by root does not undo it."""
    argv, number = sleeper()
    with held(who, started=True, argv=argv) as (process, about):
        (attendant,) = attendants(about["run_id"])
        os.kill(attendant, signal.SIGKILL)
        assert wait_until(lambda: attendant not in processes(), 2)
        assert len(alive(number)) >= 3
        process.send_signal(signal.SIGKILL)
        assert wait_until(lambda: not marked(about["run_id"]) and not alive(number), 2)


@everybody
def test_killing_bubblewrap_ends_the_sandbox(who: str) -> None:
    """Shown to fail without `--die-with-parent`: the supervisor lives, so the attendant does nothing."""
    argv, number = sleeper()
    with held(who, started=True, argv=argv) as (_, about):
        os.kill(about["bwrap"], signal.SIGKILL)
        assert wait_until(lambda: not alive(number), 2)


@everybody
def test_reap_removes_what_a_killed_supervisor_left(who: str) -> None:
    argv, _ = sleeper()
    with held(who, started=True, argv=argv) as (process, about):
        process.send_signal(signal.SIGKILL)
        process.wait()
        run_id = about["run_id"]
        assert wait_until(lambda: not marked(run_id), 2)
        left = cgroup.find(run_id).directories
        assert bool(left) == (who == "root")  # this machine's groups are root's
        _reap_twice(run_id)
        assert not any(path.exists() for path in left.values())


def _reap_twice(run_id: str) -> None:
    """With a process of the run that outlived it, and one of another run, which must not be touched."""
    stray = subprocess.Popen(["sleep", "600"], env={MARK: run_id, "PATH": "/usr/bin:/bin"})
    other = subprocess.Popen(["sleep", "600"], env={MARK: run_id + "x", "PATH": "/usr/bin:/bin"})
    try:
        for _ in range(2):
            asyncio.run(EmbeddedRuntime().reap(run_id))
        assert stray.wait(5) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        for process in (stray, other):
            process.kill()
            process.wait()


# Limits

GROW = "import sys; sys.stdout.write('start '); sys.stdout.flush(); x = bytearray(600 << 20); print(len(x))"
FORK = """
import os, sys, time
children = 0
for _ in range(300):
    try:
        pid = os.fork()
    except OSError as error:
        break
    if pid == 0:
        time.sleep(30)
        os._exit(0)
    children += 1
print(children)
"""


@everybody
def test_memory_is_limited(who: str) -> None:
    """Shown to fail with `_limit` returning at once. By control group as root, else per process."""
    result = run(SYSTEM_PYTHON, "-c", GROW, who=who, memory=200 << 20)
    if result.limits["memory"] == "control group":
        assert (result.status, result.stdout) == (137, "start ")
    else:
        assert (result.status, result.stdout) == (1, "start ")
        assert "MemoryError" in result.stderr
    assert run(SYSTEM_PYTHON, "-c", GROW, who=who, memory=2 << 30).status == 0


@everybody
def test_the_number_of_processes_is_limited(who: str) -> None:
    """Shown to fail with `_limit` returning at once."""
    assert 20 < int(run(SYSTEM_PYTHON, "-c", FORK, who=who, pids=60).stdout) < 60
    assert int(run(SYSTEM_PYTHON, "-c", FORK, who=who, pids=1000).stdout) == 300


def test_the_users_other_processes_do_not_count() -> None:
    """A desktop has thousands of threads. Shown to fail with the limit set before the user namespace is made."""
    code = "import os, time\nfor _ in range(45):\n    if os.fork() == 0:\n        time.sleep(20)\n        os._exit(0)\n"
    with held(
        "user", started=True, argv=[SYSTEM_PYTHON, "-c", code + "print('up', flush=True)\ntime.sleep(60)"]
    ):
        assert int(run(SYSTEM_PYTHON, "-c", FORK, who="user", pids=60).stdout) > 20


@everybody
def test_temporary_files_are_bounded(who: str) -> None:
    code = "for d in /tmp /var/tmp /run /dev/shm ~; do df --output=size -BM $d | tail -1; done"
    sizes = [int(size.strip("M")) for size in run("sh", "-c", code, who=who, memory=1 << 30).stdout.split()]
    assert sizes == [512, 128, 64, 128, 512]


# A file system without idmapped mounts


@pytest.fixture
def plain_filesystem(tmp_path: Path) -> Iterator[Path]:
    """A workspace owned by root on a file system that cannot map owners."""
    place = tmp_path / "plain"
    place.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "none", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_root_is_refused_where_owners_cannot_be_mapped(plain_filesystem: Path) -> None:
    """Never a sandbox of uid 0 instead. The command must not have run."""
    with pytest.raises(StartError, match="cannot map the owner of") as caught:
        run("touch", "/workspace/ran", workspace=str(plain_filesystem))
    assert caught.value.hint is not None
    assert "--runtime docker" in caught.value.hint
    assert os.listdir(plain_filesystem) == []


def test_a_read_only_mount_without_mapping_is_mounted_as_it_is(plain_filesystem: Path) -> None:
    (plain_filesystem / "file").write_text("public\n")
    plain_filesystem.chmod(0o755)
    result = run("cat", "/opt/data/file", mounts=[(str(plain_filesystem), "/opt/data", True)])
    assert result.stdout == "public\n", result.stderr
