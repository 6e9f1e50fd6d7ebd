"""Ways out of a container, tried from inside: by the agent, and by root who entered it with `docker exec`.

Each defence is also switched off once, in the same test file: the probe must then get out, or it proves nothing.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moat.runtime import container
from tests.attacks.canary import CORE, Canary, canary, host_addresses
from tests.runtime.docker_kit import Listener, read_until, sandbox, short_directory, workspace

pytestmark = [pytest.mark.docker, pytest.mark.anyio]

PROBE = Path(__file__).parents[1] / "attacks/probes/ways_out.py"
METADATA = "169.254.169.254"
Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def bird() -> Iterator[Canary]:
    with canary() as value:
        yield value


@pytest.fixture(scope="module")
def neighbour() -> Iterator[str]:
    """The address of another container, on the engine's ordinary bridge, that serves `canary` on port 8000."""
    code = (
        "import socket as s\n"
        "l = s.create_server(('', 8000))\n"
        "while True:\n"
        "  c, _ = l.accept(); c.recv(99); c.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\ncanary'); c.close()"
    )
    images = subprocess.run(
        ["docker", "images", "-q", "--filter", "label=moat.image"], check=True, capture_output=True, text=True
    ).stdout.split()
    for image in images:  # the first that has Python
        run = ["docker", "run", "-d", "--rm", image, "python3", "-c", code]
        started = subprocess.run(run, check=False, capture_output=True, text=True)
        if started.returncode == 0:
            break
    name = started.stdout.strip()
    try:
        form = "{{.NetworkSettings.IPAddress}}"
        show = ["docker", "inspect", "-f", form, name]
        yield subprocess.run(show, check=True, capture_output=True, text=True).stdout.strip()
    finally:
        subprocess.run(["docker", "rm", "-f", name], check=True, capture_output=True)


async def probe(plan: object, *, as_root: bool) -> dict[str, Any]:
    """Run the probe in a sandbox: as its command, or as root beside its command."""
    with short_directory() as directory:
        place = workspace(directory)
        (place / "probe.py").write_bytes(PROBE.read_bytes())
        (place / "plan.json").write_text(json.dumps(plan))
        command = ["python3", "/workspace/probe.py", "/workspace/plan.json"]
        argv = ["sh", "-c", "echo ready; sleep 60"] if as_root else command
        async with sandbox(*argv, workspace=place) as made:
            if not as_root:
                return dict(json.loads(await read_until(made, b"}\n")))
            await read_until(made, b"ready")
            enter = ["docker", "exec", "-u", "0:0", made.container, *command]
            done = await asyncio.to_thread(
                subprocess.run, enter, capture_output=True, text=True, timeout=60, check=True
            )
            return dict(json.loads(done.stdout))


def plan_of(bird: Canary, neighbour: str) -> dict[str, Any]:
    others = [(neighbour, 8000), (METADATA, 80), (METADATA, 443)]
    addresses = [
        a for a in host_addresses() if not a.startswith("127.") and a != "::1"
    ]  # the sandbox has its own
    return {"hosts": [*addresses, METADATA], "tcp": bird.tcp, "udp": bird.udp, "others": others}


@pytest.mark.parametrize("as_root", [False, True], ids=["agent", "root"])
async def test_nothing_outside_is_reached(bird: Canary, neighbour: str, as_root: bool) -> None:
    found = await probe(plan_of(bird, neighbour), as_root=as_root)
    assert {k for k, v in found.items() if v == "REACHED"} == set()
    assert bird.knocks == []
    refused = "Operation not permitted" if as_root else "Address family not supported by protocol"
    assert found["vsock"].endswith(refused)
    assert found["packet"].endswith(refused)
    assert all(address.startswith("127.") for address in found["name"])


@pytest.mark.parametrize("as_root", [False, True], ids=["agent", "root"])
async def test_control_with_a_network_the_probe_gets_out(
    bird: Canary, neighbour: str, as_root: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`NetworkMode: none` off: the canary, the neighbour and the host's addresses are reached."""
    change(monkeypatch, lambda c: c["HostConfig"].update(NetworkMode="bridge"))
    found = await probe(plan_of(bird, neighbour), as_root=as_root)
    assert found[f"tcp {neighbour}"] == "REACHED"
    assert [v for k, v in found.items() if k.startswith("tcp ")].count("REACHED") >= 2
    assert bird.knocks


async def test_control_without_the_container_s_filter_root_has_vsock(
    bird: Canary, neighbour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The filter of `syscalls.py` off: whoever enters the container opens an AF_VSOCK socket (20.10, or unconfined)."""
    change(
        monkeypatch,
        lambda c: c["HostConfig"].update(SecurityOpt=["no-new-privileges:true", "seccomp=unconfined"]),
    )
    assert (await probe(plan_of(bird, neighbour), as_root=True))["vsock"] == "REACHED"


def change(monkeypatch: pytest.MonkeyPatch, edit: Change) -> None:
    """Switch a defence off in the configuration that the runtime makes."""
    real = container.configuration

    def changed(*arguments: Any, **options: Any) -> dict[str, Any]:
        config = real(*arguments, **options)
        edit(config)
        return config

    monkeypatch.setattr(container, "configuration", changed)


SELF = """
import os, resource, socket
status = dict(l.split(':\\t') for l in open('/proc/self/status').read().splitlines() if ':\\t' in l)
for k in ('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'NoNewPrivs', 'Seccomp'): print(k, status[k].strip())
print('Core', resource.getrlimit(resource.RLIMIT_CORE))
def attempt(name, action):
    try: action(); print(name, 'POSSIBLE')
    except OSError as e: print(name, 'refused')
attempt('core_pattern', lambda: open('/proc/sys/kernel/core_pattern', 'r+').close())
attempt('sysrq', lambda: open('/proc/sysrq-trigger', 'w').close())
attempt('disk', lambda: os.mknod('/tmp/disk', 0o60600, os.makedev(254, 0)))
attempt('passwd', lambda: open('/etc/shadow', 'r').close())
attempt('udplite', lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136).close())
attempt('egress', lambda: socket.socket(socket.AF_UNIX).connect('/run/moat/egress/proxy.sock'))
print('interfaces', sorted(os.listdir('/sys/class/net')))
print('sockets', [p for p in ('/var/run/docker.sock', '/run/docker.sock') if os.path.exists(p)])
"""


async def test_the_agent_holds_no_privilege() -> None:
    async with sandbox("python3", "-c", SELF) as made:
        found = (await read_until(made, b"sockets []\n")).decode().splitlines()
    assert found == [
        *(f"Cap{kind} 0000000000000000" for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")),
        "NoNewPrivs 1", "Seccomp 2", f"Core {CORE}", "core_pattern refused", "sysrq refused", "disk refused",
        "passwd refused", "udplite refused", "egress POSSIBLE", "interfaces ['lo']", "sockets []",
    ]  # fmt: skip


async def test_root_in_the_container_holds_none_either() -> None:
    """Uid 0 without a capability: it may not even use the agent's socket, which is another uid's."""
    async with sandbox("sh", "-c", "echo ready; sleep 30") as made:
        await read_until(made, b"ready")
        enter = ["docker", "exec", "-u", "0:0", made.container, "python3", "-c", SELF]
        done = await asyncio.to_thread(subprocess.run, enter, capture_output=True, text=True, check=True)
    found = done.stdout.splitlines()
    assert [line for line in found if line.startswith("Cap")] == [
        f"Cap{kind} 0000000000000000" for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")
    ]
    for line in (
        "NoNewPrivs 1",
        "Seccomp 2",
        f"Core {CORE}",
        "core_pattern refused",
        "disk refused",
        "udplite refused",
        "egress refused",
    ):
        assert line in found
    assert "interfaces ['lo']" in found
    assert "sockets []" in found


FILTERED = """
import ctypes, os, platform
libc = ctypes.CDLL(None, use_errno=True)
x86 = platform.machine() == 'x86_64'
calls = {'unshare': (272 if x86 else 97, 0x10000000), 'keyctl': (250 if x86 else 219, 0), 'bpf': (321 if x86 else 280, 0),
         'io_uring_setup': (425, 1), 'mount': (165 if x86 else 40, 0), 'userfaultfd': (323 if x86 else 282, 0),
         'ptrace': (101 if x86 else 117, 0)}
for name, (number, first) in calls.items():
    ctypes.set_errno(0)
    result = libc.syscall(number, first, 0, 0, 0, 0)
    print(name, os.strerror(ctypes.get_errno()) if result < 0 else 'POSSIBLE')
"""


def test_who_has_no_limit_of_cores_asks_the_engine_for_none() -> None:
    """An engine that runs where sudo's hard limit holds, in a container, starts no container with another one."""
    script = "from moat.runtime.container import no_core; print(no_core())"
    command = ["prlimit", "--core=0:0", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[{'Name': 'core', 'Soft': 0, 'Hard': 0}]\n"


async def test_system_calls_that_widen_the_kernel_s_surface_are_refused() -> None:
    async with sandbox("python3", "-c", FILTERED) as made:
        text = (await read_until(made, b"ptrace POSSIBLE\n")).decode()  # PTRACE_TRACEME: debuggers work
    assert text.splitlines()[:-1] == [
        "unshare Operation not permitted", "keyctl Operation not permitted", "bpf Operation not permitted",
        "io_uring_setup Function not implemented", "mount Operation not permitted",
        "userfaultfd Operation not permitted",
    ]  # fmt: skip


async def test_a_file_s_variables_do_not_change_what_runs_before_the_command() -> None:
    """The first program compares mounts and installs the filter: code of the workspace must not run in it.

    Seen failing with all of them in the container's environment: the loader spoke twice, first in that program.
    """
    env = {"LD_SHOW_AUXV": "1", "LD_LIBRARY_PATH": "/workspace", "GCONV_PATH": "/workspace", "OTHER": "o"}
    show = ("sh", "-c", "echo $LD_LIBRARY_PATH $GCONV_PATH $OTHER; unset LD_SHOW_AUXV; sleep 100")
    async with sandbox(*show, env=env) as made:
        seen = await read_until(made, b"/workspace /workspace o\n")
        assert seen.count(b"AT_PHDR") == 1
        beside = await made.execute(("sh", "-c", "echo $GCONV_PATH"), tty=None, stdin=False)
        told = b""
        while (output := await beside.read()) is not None:
            told += output.data
        await beside.close()
    assert told.count(b"AT_PHDR") == 1
    assert told.endswith(b"\n/workspace\n")


async def test_another_run_s_socket_cannot_be_reached() -> None:
    """Nothing of a run's directory but its own socket is in its container; and the directories are closed on the host."""
    first = Listener()
    async with sandbox("sh", "-c", "echo ready; sleep 30", egress=first) as one:
        await read_until(one, b"ready")
        assert first.path
        assert first.path.stat().st_mode & 0o777 == 0o600
        assert first.path.parent.stat().st_mode & 0o777 == 0o700
        # One pipe for both: two would arrive in any order.
        script = f"exec 2>&1; ls /run/moat/egress; ls {first.path.parent} /tmp; find / -name '*.sock'"
        async with sandbox("sh", "-c", script) as two:
            text = ""
            while (output := await two.read()) is not None:
                text += output.data.decode()
    assert text.split("/run/moat/egress/proxy.sock")[0].startswith("proxy.sock\n")
    assert str(first.path) not in text.replace(f"cannot access '{first.path.parent}'", "")
    assert first.heads == []
