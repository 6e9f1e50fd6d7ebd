"""No program of this machine is reached over a unix socket that lies in the workspace or in a mount.

Seen failing in both runtimes without the part `Listening`: every socket answered.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, contextmanager, suppress
from pathlib import Path

import pytest

from moat.runtime import listening
from tests.git.kit import RUNTIMES

PROBE = """
import json, os, socket, sys
found = {}
for kind, path in (item.split(":") for item in sys.argv[1:]):
    sock = socket.socket(socket.AF_UNIX, getattr(socket, kind))
    sock.settimeout(3)
    try:
        sock.connect(path)
        sock.send(b"x")
        found[path] = sock.recv(9).decode() if kind == "SOCK_STREAM" else "sent"
    except OSError as error:
        found[path] = error.strerror
print(json.dumps(found))
"""


@contextmanager
def program(name: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> Iterator[None]:
    """One of this machine's, with a socket of that name."""
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(name)
        place = os.path.abspath(name)
        os.chmod(place, 0o777)
        if kind == socket.SOCK_STREAM:
            sock.listen()
            threading.Thread(target=_serve, args=(sock,), daemon=True).start()
        try:
            yield
        finally:
            with suppress(OSError):  # not of datagrams
                sock.shutdown(socket.SHUT_RDWR)
            os.unlink(place)


def _serve(sock: socket.socket) -> None:
    try:
        while True:
            with sock.accept()[0] as client:
                client.recv(1)
                client.sendall(b"the host")
    except OSError:
        return


@pytest.fixture
def place() -> Iterator[Path]:
    """With a short name: that of a socket takes a hundred bytes."""
    path = Path(tempfile.mkdtemp(prefix="mw-", dir="/tmp"))
    for name in ("ws/tmp", "ws/locked", "data"):
        (path / name).mkdir(parents=True)
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_program_of_this_machine_in_the_workspace(
    place: Path, moat: Callable[..., subprocess.CompletedProcess[str]], runtime: str
) -> None:
    """By an absolute name, by one from the project's top, through a link, as datagrams, in a read-only mount."""
    workspace = place / "ws"
    (place / "link").symlink_to(workspace)
    with ExitStack() as stack:
        stack.enter_context(program(f"{workspace}/tmp/absolute"))
        stack.enter_context(program(f"{place}/link/linked"))
        stack.enter_context(program(f"{workspace}/log", socket.SOCK_DGRAM))
        stack.enter_context(program(f"{place}/data/mounted"))
        stack.enter_context(program(f"{workspace}/locked/of-somebody-else"))
        with chdir(workspace):
            stack.enter_context(program("./relative"))
        if os.geteuid() == 0:
            os.chown(workspace / "locked", 4321, 4321)
            os.chmod(workspace / "locked", 0o700)
        reached = {
            "/workspace/tmp/absolute": "SOCK_STREAM",
            "/workspace/linked": "SOCK_STREAM",
            "/workspace/relative": "SOCK_STREAM",
            "/workspace/log": "SOCK_DGRAM",
            "/data/mounted": "SOCK_STREAM",
            "/workspace/locked/of-somebody-else": "SOCK_STREAM",
        }
        words = [f"{kind}:{path}" for path, kind in reached.items()]
        argv = [
            "run",
            "--runtime",
            runtime,
            "--mount",
            f"{place}/data:/data:ro",
            "--",
            "python3",
            "-c",
            PROBE,
            *words,
        ]
        done = moat(*argv, cwd=workspace)
        found = json.loads(done.stdout)
        assert set(found.values()) <= {"Connection refused", "Permission denied"}, (found, done.stderr)
        told = "moat: a program of this machine listens there, and the run cannot reach it: /"
        assert told in done.stderr
        (entry,) = [line for line in moat("audit", "--json").stdout.splitlines() if "sockets.covered" in line]
        assert set(json.loads(entry)["data"]["places"]) >= set(reached) - {
            "/workspace/locked/of-somebody-else"
        }
    assert sorted(os.listdir(workspace)) == ["locked", "tmp"]


def test_what_is_no_socket_of_the_tree_is_left_alone(place: Path) -> None:
    workspace = place / "ws"
    (workspace / "file").touch()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{workspace}/tmp/left")
    with program(f"{workspace}/tmp/one"), program(f"{place}/data/other"):
        bound = listening.names()
        assert f"{workspace}/tmp/one" in bound
        more = {
            f"{workspace}/file",
            "file",
            f"{workspace}/gone",
            "../data/other",
            "@abstract",
            "tmp/left",  # of another project's program, and of this one's sandbox yesterday
            f"{workspace}/../data/other",
        }
        assert list(listening.sockets(workspace, bound | more)) == ["tmp/one"]


def test_a_program_is_not_disturbed_by_being_found(place: Path) -> None:
    """Some serve one connection and end (`nc -lU`). Seen failing with one that was made to look."""
    name = f"{place}/ws/once"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        assert list(listening.sockets(place / "ws", frozenset({name}))) == ["once"]
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()
