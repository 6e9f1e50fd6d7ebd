"""The block of a run, and what may happen to the task that is in it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

import moat.runtime
from moat.errors import MoatError, StartError, UsageError
from moat.paths import runtime_dir
from moat.runtime import LocalRun, Size, State

pytestmark = [pytest.mark.anyio, pytest.mark.embedded]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    place = tmp_path / "ws"
    place.mkdir()
    return place


@pytest.fixture(autouse=True)
def _embedded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOAT_RUNTIME", "embedded")


def descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return found


def nothing_is_left() -> None:
    assert [run.name for run in moat.runtime.list_runs() if not run.state.ended] == []
    assert [run.error for run in moat.runtime.list_runs() if run.state is State.LOST] == []
    assert {path.name for path in runtime_dir().iterdir()} <= {"keyring.lock"}


@pytest.mark.parametrize("gap", [0.002, 0.01])
async def test_a_task_that_is_cancelled_twice_releases_everything(workspace: Path, gap: float) -> None:
    """The second one cut the end short: the run was lost, its sandbox lived on, descriptors were closed twice."""

    async def body() -> None:
        async with moat.runtime.start(["sleep", "1000"], workspace=workspace) as run:
            await run.wait()

    async def cancelled_after(seconds: float) -> None:
        task = asyncio.create_task(body())
        await asyncio.sleep(seconds)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(gap)
        with pytest.raises(asyncio.CancelledError):
            await task

    await cancelled_after(0.5)
    before, tasks = descriptors(), asyncio.all_tasks()
    for seconds in (0.0, 0.02, 0.05, 0.08, 0.11, 0.15, 0.2, 0.5):
        await cancelled_after(seconds)
    gc.collect()
    assert descriptors().items() <= before.items(), "none was left open"
    nothing_is_left()
    assert asyncio.all_tasks() == tasks


_TWICE = """
import asyncio, signal, sys, moat.runtime
from moat.runtime.releasing import Resources

count = 0

async def interrupt():
    global count
    count += 1
    if count == 1:
        signal.raise_signal(signal.SIGINT)  # the second one, as the run is being released

async def main():
    async with moat.runtime.start(["sleep", "1000"], workspace=sys.argv[1]) as run:
        run._resources.add("interrupt", interrupt)
        signal.raise_signal(signal.SIGINT)
        await run.wait()

asyncio.run(main())
"""
_IN_A_PART = """
import asyncio, sys, moat.runtime

async def leave():
    sys.exit(7)

async def main():
    async with moat.runtime.start(["sleep", "1000"], workspace=sys.argv[1]) as run:
        run._gateway.egress._start("part", leave)
        await run.wait()

asyncio.run(main())
"""


@pytest.mark.parametrize(("program", "status"), [(_TWICE, -signal.SIGINT), (_IN_A_PART, 7)])
def test_what_comes_out_of_the_loop_leaves_nothing(workspace: Path, program: str, status: int) -> None:
    """Ctrl-C, twice. The run was lost, and the program stood still at its end."""
    done = subprocess.run(
        [sys.executable, "-c", program, workspace], capture_output=True, timeout=20, check=False
    )
    assert done.returncode == status, done.stderr
    (record,) = moat.runtime.list_runs()
    assert (record.state, record.error) == (State.FAILED, "interrupted")
    nothing_is_left()


async def test_entered_in_one_task_and_left_in_another(workspace: Path) -> None:
    """As fixtures of some frameworks do, and cells of a notebook. It was an error of a cancel scope, and the run went on."""
    block = moat.runtime.start(["cat"], workspace=workspace, stdin=True)
    run = await asyncio.create_task(block.__aenter__())
    await asyncio.create_task(run.write(b"text"))
    await asyncio.create_task(run.close_stdin())
    assert await asyncio.create_task(run.wait()) == 0
    await asyncio.create_task(block.__aexit__(None, None, None))
    nothing_is_left()

    async def generator() -> AsyncIterator[LocalRun]:
        async with moat.runtime.start(["sleep", "1000"], workspace=workspace) as run:
            yield run

    left = generator()
    await asyncio.create_task(anext(left))
    await asyncio.create_task(left.aclose())
    nothing_is_left()


async def test_what_ends_the_run_comes_out_of_a_block_that_another_task_leaves(workspace: Path) -> None:
    async def crash() -> None:
        raise RuntimeError("out of luck")

    block = moat.runtime.start(["sleep", "1000"], workspace=workspace)
    run = await asyncio.create_task(block.__aenter__())
    assert run._gateway
    run._gateway.egress._start("proxy", crash)
    await run.ended()
    with pytest.raises(RuntimeError, match="out of luck"):
        await asyncio.create_task(block.__aexit__(None, None, None))
    nothing_is_left()


async def test_a_part_that_breaks_cancels_the_block_and_nothing_else(workspace: Path) -> None:
    async def crash() -> None:
        raise RuntimeError("out of luck")

    async def block(then: Callable[[], Any] = lambda: None) -> None:
        async with moat.runtime.start(["sleep", "1000"], workspace=workspace) as run:
            assert run._gateway
            run._gateway.egress._start("proxy", crash)
            try:
                await asyncio.sleep(1000)
            finally:
                then()

    me = asyncio.current_task()
    assert me
    with pytest.raises(RuntimeError, match="out of luck"):
        await block()
    assert me.cancelling() == 0
    with anyio.fail_after(20), anyio.CancelScope() as scope:
        await block(scope.cancel)
    assert scope.cancelled_caught, "who was cancelled for another reason as well is cancelled"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.4), moat.runtime.start(["sleep", "9"], workspace=workspace) as run:
            await run.wait()
    nothing_is_left()


async def test_leaving_is_cut_short_by_a_deadline(workspace: Path) -> None:
    """A command that ignores SIGTERM has ten seconds; who has less takes them away."""
    script = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    began = time.monotonic()
    with anyio.move_on_after(1) as scope:
        async with moat.runtime.start(["bash", "-c", script], workspace=workspace) as run:
            assert await anext(aiter(run.output()))
    assert scope.cancelled_caught
    assert time.monotonic() - began < 5
    nothing_is_left()


async def test_a_program_without_descriptors_left_gets_all_of_them_back(workspace: Path) -> None:
    """Each attempt kept a dozen: a program that had met its limit once never got away from it."""
    async with moat.runtime.start(["true"], workspace=workspace) as run:
        await run.wait()
    before = descriptors()
    free = [number for number in range(1000) if str(number) not in before]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for spare in range(2, 28, 2):
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[spare], hard))
        try:
            with pytest.raises((OSError, StartError)):
                async with moat.runtime.start(["true"], workspace=workspace) as run:
                    pytest.fail(f"{spare} were enough")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        gc.collect()
        more = descriptors().items() - before.items()
        assert [what for _, what in more if not what.startswith("pipe:")] == [], (
            spare
        )  # `subprocess` loses one
    assert len(descriptors()) - len(before) < 5
    async with moat.runtime.start(["true"], workspace=workspace) as run:
        assert await run.wait() == 0


async def test_a_further_command_is_ended_by_who_is_cancelled_twice(workspace: Path) -> None:
    """It went on in the sandbox, and its pipes stayed open."""
    async with moat.runtime.start(["sleep", "1000"], workspace=workspace) as run:

        async def body() -> None:
            command = await run.execute(["sh", "-c", "echo here; exec sleep 999"])
            try:
                await command.wait()
            finally:
                await command.close()

        first = await run.execute(["true"])  # with it the sandbox knows its command
        await first.close()
        before = descriptors()
        for at in range(8):
            task = asyncio.create_task(body())
            await asyncio.sleep(at * 0.015)
            for _ in range(3):
                task.cancel()
                await asyncio.sleep(0.002)
            with pytest.raises(asyncio.CancelledError):
                await task
        with anyio.fail_after(10):  # `close` goes on without its caller
            while descriptors().items() - before.items():
                await asyncio.sleep(0.05)
                gc.collect()
        look = await run.execute(["sh", "-c", "grep -lz '[9]99' /proc/[0-9]*/cmdline; true"])
        assert (await look.wait(), await look.read()) == (0, None)
        await look.close()


async def test_sockets_that_cannot_be_kept(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/proc")
    with pytest.raises(MoatError, match="sockets cannot be kept in /proc/moat") as caught:
        async with moat.runtime.start(["true"], workspace=workspace):
            pytest.fail("it must not start")
    assert "XDG_RUNTIME_DIR" in str(caught.value.hint)


async def test_each_block_is_a_run_of_its_own(workspace: Path) -> None:
    block = moat.runtime.start(["true"], workspace=workspace)
    async with block as run:
        assert await run.wait() == 0
    with pytest.raises(UsageError, match="has been started already"):
        async with block:
            pytest.fail("it must not start")
    assert len(moat.runtime.list_runs()) == 1


async def test_what_is_written_to_a_command_without_stdin_is_not_lost_unseen(workspace: Path) -> None:
    async with moat.runtime.start(["cat"], workspace=workspace) as run:
        with pytest.raises(UsageError, match="has no stdin") as caught:
            await run.write(b"text")
        assert "stdin=True" in str(caught.value.hint)
        assert await run.wait() == 0
    async with moat.runtime.start(["head", "-n1"], workspace=workspace, tty=Size(80, 24)) as run:
        await run.write(b"text\n")
        assert await run.wait() == 0


def test_beside_trio_there_is_a_word_about_loops(workspace: Path, home: Path) -> None:
    async def start() -> None:
        async with moat.runtime.start(["true"], workspace=workspace):
            pytest.fail("there is no loop")

    async def attach() -> None:
        async with moat.runtime.attach("other"):
            pytest.fail("there is no loop")

    for main in (start, attach):
        with pytest.raises(UsageError, match="event loop of asyncio"):
            trio.run(main)
    assert not (home / ".moat").exists()


async def test_a_profile_that_is_none_leaves_nothing(
    workspace: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It left a directory of a run that never was, and its lock."""
    monkeypatch.setenv("MOAT_PROFILE", "No Profile")
    with pytest.raises(MoatError, match="profile"):
        async with moat.runtime.start(["true"], workspace=workspace, grants=["github"]):
            pytest.fail("it must not start")
    assert not (home / ".moat" / "runs").exists()
