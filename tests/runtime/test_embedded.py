"""What a command meets in an embedded sandbox: streams, terminal, files, environment, listeners."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import struct
import subprocess
from pathlib import Path

import pytest
import uvloop

from moat.errors import StartError
from moat.runtime import bwrap
from moat.runtime.embedded import EmbeddedRuntime, EmbeddedSandbox
from moat.runtime.sandbox import AGENT_UID
from moat.runtime.size import Size
from tests.runtime.embedded_kit import (
    BUNDLE,
    EVERYBODY,
    USER_UID,
    collect,
    run,
    run_python,
    sandbox,
    user_directory,
)

pytestmark = pytest.mark.embedded
everybody = pytest.mark.parametrize("who", EVERYBODY)


async def until(made: EmbeddedSandbox, text: bytes) -> bytes:
    """Read until `text` has appeared."""
    seen = b""
    async with asyncio.timeout(10):
        while text not in seen:
            output = await made.read()
            assert output is not None, seen
            seen += output.data
    return seen


# Streams


@everybody
def test_streams_are_apart_and_the_status_is_the_commands(who: str) -> None:
    result = run("sh", "-c", "echo out; echo err >&2; exit 7", who=who)
    assert (result.stdout, result.stderr, result.status) == ("out\n", "err\n", 7)


def test_a_command_killed_by_a_signal_ends_with_128_and_its_number() -> None:
    assert run("sh", "-c", "kill -9 $$").status == 137
    assert run("sh", "-c", "kill -TERM $$").status == 143


def test_a_command_that_does_not_exist_is_127_as_in_a_shell() -> None:
    result = run("no-such-command")
    assert result.status == 127
    assert "no-such-command" in result.stderr


@everybody
def test_stdin_is_forwarded_and_ends(who: str) -> None:
    text = "x" * 70000 + "\n"
    result = run("sh", "-c", "cat; echo done", stdin=text, who=who)
    assert result.stdout == text + "done\n"


def test_without_stdin_the_command_reads_nothing() -> None:
    assert run("sh", "-c", "cat; readlink /proc/self/fd/0").stdout == "/dev/null\n"


def test_writing_to_a_command_that_closed_its_stdin_is_no_error() -> None:
    async def main() -> int:
        async with sandbox("sh", "-c", "exec <&-; echo closed; sleep 0.2", stdin="") as made:
            await made.start()
            await until(made, b"closed")
            async with asyncio.timeout(5):
                await made.write(b"x" * 1_000_000)
            await made.close_stdin()
            return await made.wait()

    assert asyncio.run(main()) == 0


def test_output_that_nobody_reads_holds_the_command_up_and_is_not_lost(tmp_path: Path) -> None:
    marker = tmp_path / "done"

    async def main() -> int:
        code = "head -c 3000000 /dev/zero; touch /workspace/done"
        async with sandbox("sh", "-c", code, workspace=str(tmp_path)) as made:
            await made.start()
            await asyncio.sleep(0.5)
            assert not marker.exists(), "output is buffered without bound"
            out, _ = await collect(made)
            return len(out)

    assert asyncio.run(main()) == 3_000_000
    assert marker.exists()


def test_input_that_the_command_does_not_read_makes_write_wait() -> None:
    async def main() -> None:
        async with sandbox("sleep", "60", stdin="") as made:
            await made.start()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await made.write(b"x" * 1_000_000)

    asyncio.run(main())


def test_a_reader_that_waits_is_released_by_destroy() -> None:
    async def main() -> object:
        async with sandbox("sleep", "60") as made:
            await made.start()
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(made.read())
                waiting = group.create_task(made.wait())
                await asyncio.sleep(0.1)
                await made.destroy()
            return reading.result(), waiting.result()

    assert asyncio.run(main()) == (None, 137)


# Terminal


def test_the_terminal_has_its_size_before_the_command_starts() -> None:
    result = run("sh", "-c", "stty size; test -t 0 && test -t 1 && test -t 2 && echo tty", tty=(123, 45))
    assert result.stdout.split() == ["45", "123", "tty"]


def test_a_resize_reaches_the_command() -> None:
    async def main() -> bytes:
        code = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.05; done"
        async with sandbox("sh", "-c", code, tty=(80, 24)) as made:
            await made.start()
            await until(made, b"ready")
            await made.resize(Size(columns=100, rows=30))
            return (await collect(made))[0]

    assert b"30 100" in asyncio.run(main())


def test_interrupt_from_the_keyboard_reaches_a_command_that_survives_it() -> None:
    """Shown to fail with bubblewrap in the command's session: ^C then ended the whole sandbox."""

    async def main() -> tuple[bytes, int]:
        code = "trap 'echo caught' INT; echo ready; sleep 0.5; sleep 0.5; echo still here"
        async with sandbox("sh", "-c", code, tty=(80, 24)) as made:
            await made.start()
            await until(made, b"ready")
            await made.write(b"\x03")
            out, _ = await collect(made)
            return out, await made.wait()

    out, status = asyncio.run(main())
    assert b"caught" in out
    assert b"still here" in out
    assert status == 0


def test_interrupt_from_the_keyboard_ends_a_command_that_does_not_care() -> None:
    async def main() -> int:
        async with sandbox("sh", "-c", "echo ready; exec sleep 60", tty=(80, 24)) as made:
            await made.start()
            await until(made, b"ready")
            await asyncio.sleep(0.1)
            await made.write(b"\x03")
            return await made.wait()

    assert asyncio.run(main()) == 130


def test_a_shell_has_job_control() -> None:
    async def main() -> bytes:
        async with sandbox("bash", "--norc", "-i", tty=(80, 24)) as made:
            await made.start()
            await until(made, b"$")
            await made.write(b"sleep 50\r")
            await asyncio.sleep(0.3)
            await made.write(b"\x1a")
            await until(made, b"Stopped")
            await made.write(b"echo back; kill -9 %1; sleep 0.1; exit 4\r")
            out, _ = await collect(made)
            assert await made.wait() == 4
            return out

    out = asyncio.run(main())
    assert b"no job control" not in out
    assert b"back" in out


def test_the_terminal_can_be_reopened_by_its_names() -> None:
    code = "echo one >/dev/tty; echo two >/proc/self/fd/1; tty"
    for who in EVERYBODY:
        result = run("sh", "-c", code, tty=(80, 24), who=who)
        assert result.stdout.split()[:2] == ["one", "two"], result.stdout
        assert result.status == 0


def test_end_of_input_on_a_terminal_is_said_with_its_character() -> None:
    async def main() -> int:
        async with sandbox("sh", "-c", "echo ready; cat; exit 3", tty=(80, 24)) as made:
            await made.start()
            await until(made, b"ready")
            await made.close_stdin()
            return await made.wait()

    assert asyncio.run(main()) == 3


def test_the_last_output_before_the_end_is_not_lost_however_late_it_is_read() -> None:
    async def main() -> bytes:
        async with sandbox(
            "sh", "-c", "stty -opost; head -c 12000 /dev/zero | tr '\\0' x", tty=(80, 24)
        ) as made:
            await made.start()
            await asyncio.sleep(0.4)
            return (await collect(made))[0]

    assert asyncio.run(main()) == b"x" * 12000


# Signals


@pytest.mark.parametrize("tty", [None, (80, 24)])
def test_a_signal_reaches_the_command_and_not_the_sandbox(tty: tuple[int, int] | None) -> None:
    async def main() -> tuple[bytes, int]:
        code = "trap 'echo term; exit 9' TERM; echo ready; while :; do sleep 0.05; done"
        async with sandbox("sh", "-c", code, tty=tty) as made:
            await made.signal(signal.SIGTERM)  # nothing runs yet
            await made.start()
            await until(made, b"ready")
            await made.signal(signal.SIGTERM)
            out, _ = await collect(made)
            return out, await made.wait()

    out, status = asyncio.run(main())
    assert b"term" in out
    assert status == 9


def test_a_signal_right_after_the_start_is_not_lost() -> None:
    async def main() -> int:
        async with sandbox("sleep", "60") as made:
            await made.start()
            await made.signal(signal.SIGKILL)
            async with asyncio.timeout(5):
                first = await made.wait()
            await made.signal(signal.SIGKILL)  # gone: nothing happens
            assert await made.wait() == first
            return first

    assert asyncio.run(main()) == 137


def test_signal_dispositions_are_the_defaults() -> None:
    """Python ignores SIGPIPE, a supervisor others; a command that inherits that misbehaves in pipelines."""
    fields = dict(
        line.split(":\t") for line in run("cat", "/proc/self/status").stdout.splitlines() if ":\t" in line
    )
    assert int(fields["SigIgn"], 16) == 0
    assert int(fields["SigBlk"], 16) == 0


# Files


def test_files_in_the_workspace_belong_to_its_owner_on_disk(tmp_path: Path) -> None:
    """Also for a workspace that only root may enter, and for one of another user."""
    for owner in (0, 1234):
        workspace = tmp_path / f"of-{owner}"
        workspace.mkdir(mode=0o700)
        (workspace / "old").write_text("old\n")
        for path in (workspace, workspace / "old"):
            os.chown(path, owner, owner)
        code = (
            "cat old; echo more >> old; mkdir sub; echo new > sub/new; id -u; stat -c %u . old sub/new; umask"
        )
        result = run("sh", "-c", code, workspace=str(workspace))
        assert result.stdout.split() == ["old", *[str(AGENT_UID)] * 4, "0022"], result.stderr
        for name in ("old", "sub", "sub/new"):
            info = (workspace / name).stat()
            assert (info.st_uid, info.st_gid) == (owner, owner)
        assert stat.S_IMODE((workspace / "sub/new").stat().st_mode) == 0o644


def test_an_ordinary_user_is_himself_inside_and_files_are_his() -> None:
    with user_directory() as (directory, _):
        workspace = directory / "workspace"
        result = run(
            "sh", "-c", "id -u; whoami; touch file; echo $HOME", who="user", workspace=str(workspace)
        )
        assert result.stdout.split() == [str(USER_UID), "agent", "/home/agent"]
        assert (workspace / "file").stat().st_uid == USER_UID


def test_an_ordinary_user_gets_no_more_of_a_workspace_than_its_permissions_allow(tmp_path: Path) -> None:
    place = tmp_path / "private"
    place.mkdir(mode=0o700)
    with pytest.raises(AssertionError, match="cannot mount"):
        run("ls", who="user", workspace=str(place))


@everybody
def test_home_is_private_empty_executable_and_the_agents(who: str) -> None:
    code = (
        "stat -c '%a %U' ~; ls -A ~; for d in ~ /tmp /var/tmp; do printf '#!/bin/sh\\necho ran\\n' > $d/x;"
        " chmod +x $d/x; $d/x; done; stat -c %a /tmp"
    )
    result = run("sh", "-c", code, who=who)
    assert result.stdout.split() == ["700", "agent", "ran", "ran", "ran", "1777"], result.stderr


@everybody
def test_home_files_and_a_mount_below_them(who: str) -> None:
    with user_directory() as (directory, _):
        logs = directory / "logs"
        logs.mkdir()
        if who == "user":
            os.chown(logs, USER_UID, USER_UID)
        result = run(
            "sh",
            "-c",
            "cd; cat .claude/settings.json .bin/tool; echo log > .claude/projects/-workspace/a.jsonl;"
            " stat -c '%a %U' .claude .claude/settings.json .claude/projects .bin/tool;"
            " echo more >> .claude/settings.json && touch .claude/projects/x && echo writable",
            who=who,
            home_files=[(".claude/settings.json", "{}\n", 0o600), (".bin/tool", "tool\n", 0o755)],
            mounts=[(str(logs), "/home/agent/.claude/projects/-workspace", False)],
        )
        assert result.stdout.splitlines() == [
            "{}", "tool", "700 agent", "600 agent", "700 agent", "755 agent", "writable",
        ], result.stderr  # fmt: skip
        written = logs / "a.jsonl"
        assert written.read_text() == "log\n"
        assert written.stat().st_uid == (USER_UID if who == "user" else 0)


def test_mounts_of_directories_and_files_read_only_and_not(tmp_path: Path) -> None:
    (tmp_path / "ro").mkdir(mode=0o700)
    (tmp_path / "ro/file").write_text("read me\n")
    (tmp_path / "file").write_text("one\n")
    (tmp_path / "file").chmod(0o600)
    (tmp_path / "link").symlink_to(tmp_path / "ro")
    result = run(
        "sh",
        "-c",
        "cat /opt/ro/file /opt/link/file; touch /opt/ro/x 2>/dev/null || echo refused; echo two >> /opt/file",
        mounts=[
            (str(tmp_path / "ro"), "/opt/ro", True),
            (str(tmp_path / "link"), "/opt/link", True),
            (str(tmp_path / "file"), "/opt/file", False),
        ],
    )
    assert result.stdout.splitlines() == ["read me", "read me", "refused"], result.stderr
    assert (tmp_path / "file").read_text() == "one\ntwo\n"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"workspace": "/no/such/place"}, "cannot mount /no/such/place"),
        ({"mounts": [("/tmp", "relative", True)]}, "plain absolute path"),
        ({"mounts": [("/tmp", "/a/../proc", True)]}, "plain absolute path"),
        ({"mounts": [("/tmp", "/proc/x", True)]}, "belongs to the sandbox"),
        ({"mounts": [("/tmp", "/home/agent", False)]}, "belongs to the sandbox"),
        ({"mounts": [("/tmp", "/workspace", False)]}, "belongs to the sandbox"),
        (
            {"mounts": [("/tmp", "/home/agent/.claude", False)], "home_files": [(".claude/a", "x", 0o600)]},
            "hides /home/agent/.claude/a",
        ),
        ({"home_files": [("../../etc/passwd", "x", 0o600)]}, "outside HOME"),
        ({"host_ports": list(range(2000, 2300))}, "more than 200"),
    ],
)
def test_what_cannot_be_made_is_refused_with_the_reason(option: dict[str, object], message: str) -> None:
    with pytest.raises(StartError, match=message):
        run("true", **option)


def test_a_socket_is_never_mounted(tmp_path: Path) -> None:
    """An engine's socket is the host's root. Shown to fail without the check in `_binds`."""
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        with pytest.raises(StartError, match="neither a directory nor a plain file"):
            run("true", mounts=[(str(path), "/opt/docker.sock", False)])


def test_a_path_that_is_no_utf8_is_mounted(tmp_path: Path) -> None:
    place = Path(os.fsdecode(bytes(tmp_path) + b"/\xff \xe4"))
    place.mkdir()
    assert run("sh", "-c", "echo x > y; ls", workspace=str(place)).stdout == "y\n"


@everybody
def test_common_programs_work(who: str) -> None:
    """User names, git with an author, a virtual environment, compilers' temp files, ssh's user lookup."""
    code = (
        "set -e; git init -q repo && cd repo && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m x;"
        "git log --oneline | wc -l; python3 -c 'import getpass; print(getpass.getuser())'; getent passwd agent | cut -d: -f6;"
        "ssh-keygen -q -t ed25519 -N '' -f ~/key; ls ~/key.pub; node -p 'os.userInfo().username'; date +%Z >/dev/null;"
        "grep -c . /etc/os-release >/dev/null; getent hosts moat-host | cut -d' ' -f1"
    )
    result = run("sh", "-c", code, who=who)
    assert result.stdout.split() == [
        "1",
        "agent",
        "/home/agent",
        "/home/agent/key.pub",
        "agent",
        "127.63.0.1",
    ], result.stderr


# Environment


@everybody
def test_the_environment_is_what_was_given_and_what_is_missing(who: str) -> None:
    result = run("env", env={"FOO": "bar baz", "LANG": "C", "EMPTY": ""}, who=who)
    found = dict(line.split("=", 1) for line in result.stdout.splitlines())
    found.pop("PWD")
    assert found == {
        "FOO": "bar baz",
        "EMPTY": "",
        "LANG": "C",
        "HOME": "/home/agent",
        "USER": "agent",
        "LOGNAME": "agent",
        "SHELL": "/bin/bash",
        "PATH": "/home/agent/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }


def test_on_a_terminal_there_is_a_terminal_type() -> None:
    assert run("sh", "-c", "echo $TERM", tty=(80, 24)).stdout.strip() == "xterm-256color"


def test_the_bundle_is_where_every_distribution_looks() -> None:
    paths = ("/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem", "/etc/pki/tls/certs/ca-bundle.crt")
    assert run("cat", *paths).stdout.encode() == BUNDLE * 3


# Listeners

CONNECT = """
import json, socket, sys
found = {}
for target in sys.argv[1:]:
    host, port = target.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), 3) as sock:
            found[target] = sock.makefile().readline().strip()
    except OSError as error:
        found[target] = type(error).__name__ + ":" + str(error.errno)
print(json.dumps(found))
"""


@everybody
def test_every_listener_is_reached_inside_and_names_are_told_apart(who: str) -> None:
    targets = ["127.0.0.1:3128", "example.com:443", "example.com:80", "other.example:443", "127.9.9.9:443"]
    targets += ["moat-host:5432", "moat-host:80", "moat-host:443", "moat-host:81"]
    found = run_python(CONNECT, *targets, who=who, host_ports=[5432, 80, 443])
    assert found == {
        "127.0.0.1:3128": "proxy for 127.0.0.1",
        "example.com:443": "https for example.com",
        "example.com:80": "http for example.com",
        "other.example:443": "https for other.example",
        "127.9.9.9:443": "https for 127.9.9.9",
        "moat-host:5432": "host 5432 for 127.63.0.1",
        "moat-host:80": "host 80 for 127.63.0.1",
        "moat-host:443": "host 443 for 127.63.0.1",
        "moat-host:81": "ConnectionRefusedError:111",
    }


@everybody
def test_the_agents_own_servers_work_on_any_free_port(who: str) -> None:
    code = """
import json, socket
ports = {}
for port in (22, 3000):
    with socket.create_server(("127.0.0.1", port)) as server, socket.create_connection(("localhost", port)):
        ports[port] = True
print(json.dumps(len(ports)))
"""
    assert run_python(code, who=who) == 2


def test_no_further_user_namespace_even_without_the_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shown to fail without `--disable-userns`. The filter is taken out here: it would refuse first."""
    allow_everything = struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)
    monkeypatch.setattr(bwrap.seccomp, "program", lambda **_: allow_everything)
    result = run("sh", "-c", "unshare -U true; echo $?; unshare --net true; echo $?")
    assert result.stdout.split() == ["1", "1"]
    assert "No space left on device" in result.stderr


# Probe


def test_the_probe_starts_a_sandbox_and_says_what_is_limited() -> None:
    probe = asyncio.run(EmbeddedRuntime().probe())
    assert probe.usable, probe
    assert probe.reason.startswith("bubblewrap 0.")
    assert "memory by" in probe.reason
    assert "pids by" in probe.reason


def test_the_probe_names_what_is_missing_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    probe = asyncio.run(EmbeddedRuntime().probe())
    assert not probe.usable
    assert probe.reason == "bubblewrap is not installed"
    assert probe.hint == "apt-get install bubblewrap"


@pytest.mark.parametrize(
    ("version", "mode", "reason"),
    [("0.4.1", 0o755, "too old: bubblewrap 0.4.1 has no --perms"), ("0.8.0", 0o4755, "is set-uid root")],
)
def test_the_probe_refuses_a_bubblewrap_that_cannot_do_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, mode: int, reason: str
) -> None:
    program = tmp_path / "bwrap"
    program.write_text(f"#!/bin/sh\necho bubblewrap {version}\n")
    program.chmod(mode)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    probe = asyncio.run(EmbeddedRuntime().probe())
    assert not probe.usable
    assert reason in probe.reason
    assert probe.hint


def test_without_root_a_bubblewrap_must_mount_by_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would mount by name, and another run could redirect the name."""
    program = tmp_path / "bwrap"
    program.write_text("#!/bin/sh\necho bubblewrap 0.8.0 --perms --size\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    probe = asyncio.run(EmbeddedRuntime().probe())
    assert not probe.usable
    assert "has no --bind-fd" in probe.reason
    assert "security updates" in probe.hint


def test_the_probe_fails_where_user_namespaces_are_refused(tmp_path: Path) -> None:
    """In a process whose filter refuses them, as a container's does."""
    code = """
import asyncio, ctypes, json, sys
from moat.runtime import seccomp
from moat.runtime import bwrap
from moat.runtime.embedded import EmbeddedRuntime
seccomp.install()
probe = asyncio.run(EmbeddedRuntime().probe())
print(json.dumps([probe.usable, probe.reason, probe.hint]))
"""
    with user_directory() as (_, command):
        done = subprocess.run([*command, "-c", code], capture_output=True, text=True, timeout=60)
    usable, reason, hint = json.loads(done.stdout)
    assert not usable
    assert "bubblewrap could not make a sandbox: bwrap: " in reason
    assert "user namespaces are refused here" in hint


def test_a_start_takes_a_fraction_of_a_second() -> None:
    """About 0.1 s on a quiet machine (benchmarks); the bound leaves room for a busy one."""
    seconds = sorted(run("echo").seconds for _ in range(5))
    assert seconds[2] < 1.0, seconds


@pytest.mark.parametrize("tty", [None, (80, 24)])
def test_it_works_on_uvloop(tty: tuple[int, int] | None) -> None:
    async def main() -> tuple[bytes, int]:
        async with sandbox("sh", "-c", "read line; echo got $line; exit 3", stdin="", tty=tty) as made:
            await made.start()
            await made.write(b"hello\n")
            out, _ = await collect(made)
            return out, await made.wait()

    out, status = uvloop.run(main())
    assert b"got hello" in out
    assert status == 3


def test_many_at_once_do_not_meet(tmp_path: Path) -> None:
    async def one(index: int) -> str:
        async with sandbox("sh", "-c", f"echo {index} > /tmp/mine; sleep 0.2; cat /tmp/*; hostname") as made:
            await made.start()
            return (await collect(made))[0].decode()

    async def main() -> list[str]:
        return await asyncio.gather(*(one(index) for index in range(5)))

    assert asyncio.run(main()) == [f"{index}\nmoat\n" for index in range(5)]


def test_sockets_of_what_is_installed_locally_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """/usr/local/var holds watchman's, which runs commands for its clients. Another directory plays it here."""
    assert run("ls", "/usr/share/doc").stdout
    monkeypatch.setattr(bwrap, "_STATE", "/usr/share/doc")
    assert run("ls", "-A", "/usr/share/doc").stdout == ""
