"""A container as a sandbox: streams, terminal, signals, exit status, ownership, and nothing left behind."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import signal
import stat
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from moat.errors import StartError
from moat.runtime import engine_socket
from moat.runtime.docker import DockerRuntime
from moat.runtime.engine_http import Exchange
from moat.runtime.sandbox import AGENT_UID, HomeFile, Mount
from moat.runtime.size import Size
from tests.runtime.docker_kit import CACHE, finish, read_until, run, sandbox, short_directory, workspace

pytestmark = [pytest.mark.docker, pytest.mark.anyio]


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 143), ("kill -KILL $$", 137), ("exit 255", 255)],
)
async def test_exit_status_is_the_command_s(script: str, status: int) -> None:
    assert (await run("sh", "-c", script)).status == status


async def test_commands_that_cannot_run() -> None:
    missing = await run("no-such-command")
    assert (missing.status, missing.stderr) == (127, b"moat: no-such-command: command not found\n")
    denied = await run("/etc/passwd")
    assert (denied.status, denied.stderr) == (126, b"moat: /etc/passwd: Permission denied\n")


async def test_stdout_and_stderr_are_apart_and_complete() -> None:
    script = "import sys; sys.stdout.write('o' * 300000); sys.stderr.write('e' * 200000)"
    result = await run("python3", "-c", script)
    assert result.status == 0
    assert result.stdout == b"o" * 300000
    assert result.stderr == b"e" * 200000


async def test_ten_megabytes_pass_stdin_and_stdout_unchanged() -> None:
    data = os.urandom(10 << 20)
    async with sandbox("cat", stdin=True) as made:

        async def feed() -> None:
            for start in range(0, len(data), 100_000):
                await made.write(data[start : start + 100_000])
            await made.close_stdin()

        result, _ = await asyncio.gather(finish(made), feed())
    assert result.status == 0
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(data).digest()


async def test_output_comes_after_stdin_has_ended() -> None:
    async with sandbox("sh", "-c", "cat >/dev/null; sleep 0.3; echo after", stdin=True) as made:
        await made.write(b"x")
        await made.close_stdin()
        assert (await finish(made)).text == "after\n"


async def test_without_stdin_the_command_reads_an_end_at_once() -> None:
    assert (await run("sh", "-c", "cat; readlink /proc/self/fd/0")).text == "/dev/null\n"


async def test_a_command_that_does_not_read_holds_its_writer_back() -> None:
    async with sandbox("sleep", "30", stdin=True) as made:

        async def flood() -> None:
            for _ in range(200):
                await made.write(bytes(1 << 20))

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(flood(), 2)


# Terminal


async def test_the_terminal_has_its_size_from_the_start_and_changes_it() -> None:
    script = "stty size; trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.1; done"
    async with sandbox("bash", "-c", script, tty=Size(101, 37)) as made:
        assert (await read_until(made, b"ready\r\n")).startswith(b"37 101\r\n")
        await made.resize(Size(63, 21))
        assert b"21 63\r\n" in await read_until(made, b"21 63\r\n")


async def test_interrupt_key_ends_the_foreground_program() -> None:
    # Short: a key between the fork of `sleep` and its start reaches the shell alone, which waits for it.
    async with sandbox("sh", "-c", "echo ready; sleep 3; true", tty=Size(80, 24)) as made:
        await read_until(made, b"ready")
        await made.write(b"\x03")
        assert (await finish(made)).status == 130


async def test_job_control_works_as_in_any_terminal() -> None:
    async with sandbox("bash", "--norc", tty=Size(80, 24), env={"PS1": "> "}) as made:
        await read_until(made, b"> ")
        await made.write(b"sh -c 'echo in-the-$((40+2)); exec sleep 30'\n")
        await read_until(made, b"in-the-42")  # it has the terminal
        await made.write(b"\x1a")
        await read_until(made, b"Stopped")
        # A shell with stopped jobs does not exit, and it notices an end only when it looks.
        await made.write(b"kill -KILL %1; while jobs %1; do sleep 0.1; done; echo code $((40+2))\n")
        await read_until(made, b"code 42")
        await made.write(b"exit 5\n")
        assert (await finish(made)).status == 5


async def test_control_p_is_the_program_s_not_the_engine_s() -> None:
    script = "stty raw -echo; echo ready; head -c 3 | od -An -tx1"
    async with sandbox("sh", "-c", script, tty=Size(80, 24)) as made:
        await read_until(made, b"ready")
        await made.write(b"\x10\x11x")
        assert b"10 11 78" in await read_until(made, b"78")


async def test_signals_reach_the_foreground_of_a_terminal() -> None:
    """The engine's own kill would only reach the shell, which ignores SIGTERM while it waits."""
    script = "trap 'echo shell' TERM; sh -c 'trap \"echo child; exit 9\" TERM; echo ready; while :; do sleep 0.1; done'"
    async with sandbox("bash", "-ic", script, tty=Size(80, 24)) as made:
        await read_until(made, b"ready")
        await made.signal(signal.SIGTERM)
        await read_until(made, b"child")


async def test_signals_reach_a_plain_command() -> None:
    script = "trap 'exit 42' HUP; echo ready; while :; do sleep 0.1; done"
    async with sandbox("sh", "-c", script) as made:
        await read_until(made, b"ready")
        await made.signal(signal.SIGHUP)
        assert (await finish(made)).status == 42


async def test_kill_ends_everything() -> None:
    async with sandbox("sh", "-c", "trap '' TERM; sleep 30 & echo ready; wait; sleep 30") as made:
        await read_until(made, b"ready")
        await made.signal(signal.SIGKILL)
        assert (await finish(made)).status == 137


# Who the agent is


@pytest.mark.parametrize(("owner", "agent"), [(4321, 4321), (0, AGENT_UID)])
async def test_the_agent_owns_home_and_workspace(owner: int, agent: int) -> None:
    script = "id -u; whoami; python3 -c 'import getpass; print(getpass.getuser())'; cd; pwd; touch a; stat -c %u:%a . /workspace/old"
    with short_directory() as directory:
        place = workspace(directory, uid=owner)
        (place / "old").write_text("x")
        (place / "old").chmod(0o600)
        os.chown(place / "old", owner, owner)
        result = await run(
            "sh", "-c", script + "; cat /workspace/old; mkdir -p /workspace/new/er", workspace=place
        )
        assert result.text.split() == [
            str(agent), "agent", "agent", "/home/agent", f"{agent}:700", f"{agent}:600", "x",
        ]  # fmt: skip
        made = (place / "new/er").stat()
        assert (made.st_uid, made.st_gid) == (owner, owner)


async def test_root_s_agent_cannot_use_root_s_files_elsewhere() -> None:
    """Not uid 0, neither in the container nor to the kernel: /etc/shadow of the image stays closed."""
    with short_directory() as directory:
        result = await run(
            "sh", "-c", "cat /etc/shadow; cat /proc/self/uid_map", workspace=workspace(directory, uid=0)
        )
    assert b"Permission denied" in result.stderr
    assert result.stdout.split() == [b"0", b"0", b"4294967295"]


async def test_home_files_and_parents_of_mounts_are_the_agent_s() -> None:
    with short_directory() as directory:
        shared = directory / "shared"
        shared.mkdir()
        shared.chmod(0o750)  # whatever the umask
        files = (HomeFile(".claude.json", b"{}"), HomeFile(".config/x/run", b"#!/bin/sh\necho ran", 0o755))
        script = (
            "stat -c '%n %u %a' .claude.json .config .config/x .claude .claude/projects; .config/x/run; "
            "touch .claude/mine .claude/projects/-workspace/made"
        )
        result = await run(
            "sh", "-c", f"cd && {script}", home_files=files,
            mounts=(Mount(shared, "/home/agent/.claude/projects/-workspace"),),
        )  # fmt: skip
        assert result.text.splitlines() == [
            ".claude.json 4321 600", ".config 4321 700", ".config/x 4321 700",
            ".claude 4321 700", ".claude/projects 4321 700", "ran",
        ]  # fmt: skip
        # root's directory, by an idmapped mount: usable, and neither its mode nor its owner changed
        assert (shared / "made").stat().st_uid == 0
        assert stat.S_IMODE(shared.stat().st_mode) == 0o750


async def test_a_read_only_mount_cannot_be_written() -> None:
    with short_directory() as directory:
        (directory / "data").mkdir()
        mount = Mount(directory / "data", "/mnt/data", read_only=True)
        result = await run("touch", "/mnt/data/x", mounts=(mount,))
    assert b"Read-only file system" in result.stderr


@pytest.mark.parametrize("path", ["../x", "/etc/x", ".claude/projects/-workspace/x"])
async def test_home_files_never_leave_home(path: str) -> None:
    with short_directory() as directory:
        mounts = (Mount(directory, "/home/agent/.claude/projects/-workspace"),)
        with pytest.raises(StartError, match="home file"):
            await run("true", home_files=(HomeFile(path, b""),), mounts=mounts)
        assert list(directory.iterdir()) == []


async def test_environment_is_the_run_s_with_home_and_user() -> None:
    result = await run("env", env={"HELLO": "wörld=1", "PATH": "/usr/bin:/bin"})
    env = dict(line.split("=", 1) for line in result.text.splitlines())
    env.pop("HOSTNAME", None)
    assert env == {
        "HELLO": "wörld=1", "PATH": "/usr/bin:/bin", "HOME": "/home/agent", "USER": "agent", "LOGNAME": "agent",
    }  # fmt: skip


async def test_limits() -> None:
    result = await run("python3", "-c", "x = bytearray(300 << 20)", memory=150 << 20)
    assert result.status == 137
    bomb = "import os,sys\ntry:\n for n in range(200):\n  if not os.fork(): __import__('time').sleep(2); os._exit(0)\nexcept OSError: print('stopped', n < 60)"
    assert (await run("python3", "-c", bomb, pids=60)).text == "stopped True\n"


async def test_certificates_are_the_run_s() -> None:
    bundle = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
    result = await run("cat", "/etc/ssl/certs/ca-certificates.crt", ca_bundle=bundle)
    assert result.stdout == bundle


async def test_what_moat_put_there_cannot_be_changed_by_who_owns_it() -> None:
    """A user's run has the user's uid, so these files are its own. Fails where one is not bound read-only."""
    script = (
        "read x; for f in /run/moat/programs/*.py /etc/passwd /etc/group $SSL_CERT_FILE; do echo x >>$f; done"
    )
    bundle = {"SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt"}
    async with sandbox("bash", "-c", f"{script}; mv $SSL_CERT_FILE /tmp", stdin=True, env=bundle) as made:
        for path in (made.spec.directory / "furniture").rglob("*"):
            os.chown(path, 4321, 4321)
        await made.write(b"\n")
        result = await finish(made)
    said = result.stderr.splitlines()
    assert len([line for line in said if line.endswith(b": Read-only file system")]) == 7, said
    assert result.status != 0, "the way to the bundle is root's, and it is a mount"


# Nothing left


async def test_destroy_leaves_nothing_and_may_be_repeated() -> None:
    with short_directory() as directory:
        place = workspace(directory, uid=0)
        async with sandbox("sleep", "30", workspace=place) as made:
            run_id, own = made.spec.run_id, made.spec.directory
            assert len(engine_socket.labelled(f"moat.run={run_id}")) == 1
            assert str(own) in Path("/proc/self/mountinfo").read_text()
            waiting = asyncio.create_task(made.wait())
            await asyncio.sleep(0.1)
            await made.destroy()
            assert await waiting == 137
            assert engine_socket.labelled(f"moat.run={run_id}") == []
            assert str(own) not in Path("/proc/self/mountinfo").read_text()
            assert not (own / "egress").exists()
            await made.destroy()
        assert place.exists()


async def test_who_reads_when_it_is_destroyed_meets_the_end() -> None:
    async with sandbox("sleep", "30", tty=Size(80, 24)) as made:
        reading = asyncio.create_task(made.read())
        await asyncio.sleep(0.2)
        await made.destroy()
        assert await asyncio.wait_for(reading, 5) is None
        await made.write(b"late")
        await made.resize(Size(1, 1))
        await made.close_stdin()
        await made.signal(signal.SIGTERM)
        assert await made.read() is None


async def test_a_cancelled_create_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled between the container's creation and its files: the moment with the most to lose."""
    made: list[str] = []

    async def stuck(_engine: object, name: str, _archive: bytes) -> None:
        made.append(name)
        await asyncio.sleep(60)

    monkeypatch.setattr("moat.runtime.engine.Engine.put", stuck)
    with short_directory() as directory:
        files = (HomeFile("x", b""),)
        creating = asyncio.create_task(run("true", workspace=workspace(directory, uid=0), home_files=files))
        while not made:
            await asyncio.sleep(0.05)
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
    assert not [c for c in engine_socket.labelled("moat.run") if c["Id"] == made[0]]
    assert str(directory) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize("how", ["task", "scope"])
async def test_what_the_engine_makes_for_nobody_is_taken_back(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Cancelled when the engine has been asked and has not answered. Seen failing: a container stayed, known to nobody."""
    asked = asyncio.Event()
    real = Exchange.body

    async def late(exchange: Exchange) -> bytes:
        if exchange._reply.status == 201:  # made, and nobody has heard of it
            asked.set()
            await asyncio.sleep(0.5)
        return await real(exchange)

    monkeypatch.setattr(Exchange, "body", late)
    run_id = f"run_{secrets.token_hex(6)}"
    scope = anyio.CancelScope()

    async def create() -> None:
        with scope, short_directory() as directory:
            await run("true", workspace=workspace(directory), run_id=run_id)

    creating = asyncio.create_task(create())
    await asked.wait()
    assert engine_socket.labelled(f"moat.run={run_id}")
    (scope.cancel if how == "scope" else creating.cancel)()
    await asyncio.wait([creating])
    assert not engine_socket.labelled(f"moat.run={run_id}")


async def test_reap_removes_what_a_killed_supervisor_left() -> None:
    run_id = f"run_{secrets.token_hex(6)}"
    script = """
import asyncio, sys
from pathlib import Path
from moat.runtime.docker import DockerRuntime
from moat.runtime.sandbox import SandboxSpec
from tests.runtime.docker_kit import CACHE, Listener
async def main():
    spec = SandboxSpec(run_id=sys.argv[3], argv=("sleep", "60"), workspace=Path(sys.argv[1]),
                       ca_bundle=b"-", directory=Path(sys.argv[2]))
    sandbox = await DockerRuntime(CACHE).create(spec, Listener(), print)
    await sandbox.start()
    print("started", "aiodocker" in sys.modules, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    with short_directory() as directory:
        place = workspace(directory, uid=0)
        (place / "kept").write_text("x")
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(place), str(directory), run_id],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout
        try:
            assert (
                process.stdout.readline() == "started False\n"
            )  # a client library costs a fifth of a second
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        assert len(engine_socket.labelled(f"moat.run={run_id}")) == 1
        for _ in range(2):
            await DockerRuntime(CACHE).reap(run_id)
        assert engine_socket.labelled(f"moat.run={run_id}") == []
        assert str(directory) not in Path("/proc/self/mountinfo").read_text()
        assert (place / "kept").read_text() == "x"


async def test_a_failed_create_leaves_nothing() -> None:
    run_id = f"run_{secrets.token_hex(6)}"
    with short_directory() as directory, pytest.raises(StartError, match="No such file"):
        await run("true", run_id=run_id, mounts=(Mount(directory / "missing", "/mnt/x"),))
    assert engine_socket.labelled(f"moat.run={run_id}") == []


async def test_probe_says_what_engine_there_is() -> None:
    probe = await DockerRuntime(CACHE).probe()
    assert probe.usable
    assert probe.reason.startswith("Docker 2")
