"""The way into a sandbox: real servers in both runtimes, and what a hostile forwarder can say to the run."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from moat.runtime import dial
from moat.runtime.dial import ForwarderDialler
from tests.runtime import docker_kit, embedded_kit

pytestmark = pytest.mark.anyio

SERVER = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
listener = socket.socket(family, socket.SOCK_STREAM)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((sys.argv[1], 3000))
listener.listen(50)
print("ready", flush=True)
while True:
    peer, _ = listener.accept()
    while data := peer.recv(65536):
        peer.sendall(data.upper())
    peer.close()
"""


async def talk(made, data: bytes = b"hello") -> bytes:
    loop = asyncio.get_running_loop()
    with await made.dial(3000) as sock:
        assert not sock.getblocking()

        async def send() -> None:
            await loop.sock_sendall(sock, data)
            sock.shutdown(socket.SHUT_WR)

        answer = b""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            while piece := await loop.sock_recv(sock, 65536):
                answer += piece
        return answer


@pytest.mark.embedded
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
async def test_embedded(address: str) -> None:
    python = embedded_kit.SYSTEM_PYTHON
    async with embedded_kit.sandbox(python, "-c", SERVER, address, ingress=True) as made:
        await made.start()
        assert (await made.read()).data == b"ready\n"
        for _ in range(20):
            assert await talk(made) == b"HELLO"
        assert await talk(made, b"x" * 1_000_000) == b"X" * 1_000_000
        with pytest.raises(ConnectionRefusedError):
            await made.dial(3001)
    with pytest.raises(OSError):
        await made.dial(3000)


AS_USER = """
import asyncio, sys
import kit

async def main():
    async with kit.sandbox(kit.SYSTEM_PYTHON, "-c", sys.argv[1], "127.0.0.1", ingress=True) as made:
        await made.start()
        await made.read()
        with await made.dial(3000) as sock:
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(sock, b"hello")
            print((await loop.sock_recv(sock, 100)).decode())

asyncio.run(main())
"""


@pytest.mark.embedded
def test_embedded_as_an_ordinary_user() -> None:
    with embedded_kit.user_directory() as (directory, command):
        (directory / "dial.py").write_text(AS_USER)
        done = subprocess.run(
            [*command, directory / "dial.py", SERVER], capture_output=True, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stdout) == (0, "HELLO\n"), done.stderr


@pytest.mark.docker
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
async def test_docker(address: str) -> None:
    async with docker_kit.sandbox(
        "python3", "-c", SERVER, address, ingress=True, dependencies=("python",)
    ) as made:
        await docker_kit.read_until(made, b"ready\n")
        for _ in range(20):
            assert await talk(made) == b"HELLO"
        assert await talk(made, b"x" * 1_000_000) == b"X" * 1_000_000
        with pytest.raises(ConnectionRefusedError):
            await made.dial(3001)
        left = [path.name for path in (made.spec.directory / "egress").iterdir()]
        assert sorted(left) == ["proxy.sock"], "each connection's socket was for once"
    with pytest.raises(OSError):
        await made.dial(3000)


@pytest.mark.embedded
@pytest.mark.docker
async def test_a_sandbox_that_was_made_without_a_way_in_has_none() -> None:
    async with embedded_kit.sandbox("sleep", "5") as made:
        with pytest.raises(ConnectionRefusedError):
            await made.dial(3000)
    async with docker_kit.sandbox("sleep", "5") as container:
        with pytest.raises(ConnectionRefusedError):
            await container.dial(3000)


# --- a forwarder that obeys the agent ---------------------------------------------------------------------


@pytest.fixture
def directory() -> Iterator[Path]:
    with docker_kit.short_directory() as path:
        yield path


def forwarder(directory: Path, say: Callable[[socket.socket], object]) -> threading.Thread:
    """Obeys orders by `say`, for one connection after the other."""

    def obey() -> None:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as control:
            control.connect(str(directory / "dial.sock"))
            while order := control.recv(1000):
                name = order.decode().split()[1]
                with socket.socket(socket.AF_UNIX) as back:
                    back.connect(str(directory / name))
                    with contextlib.suppress(OSError):
                        say(back)

    thread = threading.Thread(target=obey, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"111\n", ConnectionRefusedError),
        (b"", ConnectionResetError),
        (b"nonsense\n", ConnectionResetError),
        (b"-5\n", ConnectionResetError),
        (b"+", ConnectionResetError),
        (b"x" * 100_000, ConnectionResetError),
        (b"0\n", ConnectionResetError),
        (b"99999999\n", OSError),
        ("٣\n".encode(), ConnectionResetError),
    ],
)
async def test_what_it_says_wrong_is_an_error_of_the_connection(
    directory: Path, said: bytes, error: type[OSError]
) -> None:
    dialler = ForwarderDialler(directory, os.geteuid())
    forwarder(directory, lambda back: back.sendall(said))
    with pytest.raises(error):
        await dialler.dial(3000)
    dialler.close()
    assert [path.name for path in directory.iterdir()] == []


async def test_descriptors_that_it_sends_are_not_taken(directory: Path) -> None:
    """They would be file descriptions that it shares with the run, and could make block."""

    def say(back: socket.socket) -> None:
        fds = array.array("i", [back.fileno(), os.open("/etc/passwd", os.O_RDONLY)])
        back.sendmsg([b"+\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        back.sendall(b"bytes")

    dialler = ForwarderDialler(directory, os.geteuid())
    forwarder(directory, say)
    before = held()
    with await dialler.dial(3000) as sock:
        assert await asyncio.get_running_loop().sock_recv(sock, 10) == b"bytes"
        # One is ours, opened by the thread; a second one would have come through the socket.
        assert held() == before + 1
    dialler.close()


def held() -> int:
    """How often this process has /etc/passwd open."""
    found = 0
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{entry}") == "/etc/passwd"
    return found


async def test_one_that_says_nothing_costs_a_moment(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "_SECONDS", 0.3)
    dialler = ForwarderDialler(directory, os.geteuid())
    wait = threading.Event()
    forwarder(directory, lambda back: wait.wait(10))
    with pytest.raises(TimeoutError):
        await dialler.dial(3000)
    wait.set()
    dialler.close()


async def test_one_that_never_comes_costs_a_moment(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "_SECONDS", 0.3)
    dialler = ForwarderDialler(directory, os.geteuid())
    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(_refused, dialler)
    dialler.close()
    with pytest.raises(OSError):
        await dialler.dial(3000)


async def _refused(dialler: ForwarderDialler) -> None:
    with pytest.raises(TimeoutError):
        await dialler.dial(3000)
