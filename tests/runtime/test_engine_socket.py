"""Which engine is used, and what is said about one that cannot be: with real sockets, most without an engine."""

from __future__ import annotations

import ast
import asyncio
import hashlib
import json
import platform
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moat.runtime import engine_socket, furniture
from moat.runtime.docker import DockerRuntime, examine
from moat.runtime.engine_socket import EngineUnreachableError

INFO = {
    "OSType": "linux", "KernelVersion": platform.release(), "OperatingSystem": "Debian", "ServerVersion": "20.10.24",
    "SecurityOptions": ["name=seccomp,profile=default"], "MemoryLimit": True, "SwapLimit": True, "PidsLimit": True,
}  # fmt: skip


def test_docker_host_names_the_socket(home: Path) -> None:
    assert engine_socket.engine_socket({"DOCKER_HOST": "unix:///run/user/7/docker.sock"}) == Path(
        "/run/user/7/docker.sock"
    )
    assert str(engine_socket.engine_socket({})).endswith("/docker.sock")
    assert home.is_dir()


@pytest.mark.parametrize(
    "address", ["tcp://192.0.2.1:2375", "ssh://me:secret@build.test", "npipe:////./pipe/x"]
)
def test_a_remote_engine_is_refused_without_contacting_it(address: str) -> None:
    with pytest.raises(EngineUnreachableError) as caught:
        engine_socket.engine_socket({"DOCKER_HOST": address})
    assert "cannot share" in str(caught.value)
    assert "--runtime embedded" in (caught.value.hint or "")
    assert "secret" not in str(caught.value)


def test_the_chosen_context_names_the_socket(home: Path) -> None:
    meta = home / ".docker/contexts/meta" / hashlib.sha256(b"work").hexdigest() / "meta.json"
    meta.parent.mkdir(parents=True)
    meta.write_text(json.dumps({"Endpoints": {"docker": {"Host": "unix:///work.sock"}}}))
    (home / ".docker/config.json").write_text(json.dumps({"currentContext": "work"}))
    assert engine_socket.engine_socket({}) == Path("/work.sock")
    assert engine_socket.engine_socket({"DOCKER_CONTEXT": "default"}) != Path("/work.sock")
    assert engine_socket.engine_socket({"DOCKER_HOST": "unix:///env.sock"}) == Path("/env.sock")


class Impostor(threading.Thread):
    """Speaks like an engine that has the given answer to everything."""

    def __init__(self, path: Path, answer: object) -> None:
        super().__init__(daemon=True)
        self.path, self._answer = path, json.dumps(answer).encode()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()

    def run(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            with peer:
                peer.recv(4096)
                head = f"HTTP/1.1 200 OK\r\nApi-Version: 1.44\r\nContent-Length: {len(self._answer)}\r\n\r\n"
                peer.sendall(head.encode() + self._answer)

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.join()


@pytest.fixture
def engine(
    request: pytest.FixtureRequest, runtime_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Impostor]:
    thread = Impostor(runtime_directory / "engine.sock", INFO | request.param)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{thread.path}")
    thread.start()
    yield thread
    thread.stop()
    thread.path.unlink()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        ({"OperatingSystem": "Docker Desktop"}, "Docker Desktop runs containers in a virtual machine"),
        ({"KernelVersion": "5.15.0-linuxkit"}, "another kernel"),
        ({"OSType": "windows"}, "another kernel"),
        ({"SecurityOptions": ["name=seccomp,profile=default", "name=rootless"]}, "it is rootless"),
    ],
    indirect=["engine"],
)
async def test_engines_that_cannot_share_a_socket_say_so(engine: Impostor, reason: str) -> None:
    probe = await DockerRuntime(engine.path).probe()
    assert not probe.usable
    assert reason in probe.reason
    assert "--runtime embedded" in probe.hint


@pytest.mark.anyio
@pytest.mark.parametrize("engine", [{"MemoryLimit": False, "PidsLimit": False}], indirect=True)
async def test_missing_limits_are_told(engine: Impostor) -> None:
    probe = await DockerRuntime(engine.path).probe()
    assert probe.usable
    assert probe.reason == f"Docker 20.10.24 at {engine.path}; it cannot limit memory and pids"


@pytest.mark.parametrize("engine", [{"SecurityOptions": ["name=userns"]}], indirect=True)
def test_an_engine_that_remaps_uids_is_asked_for_the_host_s(engine: Impostor) -> None:
    info = examine()
    assert (info.remapped, info.api_version, info.path) == (True, "1.44", engine.path)


@pytest.mark.anyio
async def test_no_engine_is_a_reason_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    probe = await DockerRuntime(Path("/nowhere")).probe()
    assert not probe.usable
    assert probe.reason == "no Docker engine answers at /nowhere/docker.sock (No such file or directory)"
    assert "systemctl start docker" in probe.hint


@pytest.mark.docker
def test_the_real_engine_shares_this_machine_s_mounts() -> None:
    assert engine_socket.shares_mounts(examine().path)


@pytest.mark.parametrize("name", furniture.FILES)
def test_what_runs_in_containers_is_old_python_without_moat(name: str) -> None:
    """A base image may have Python 3.7, and has no Moat."""
    tree = ast.parse(furniture.programs()[name], feature_version=(3, 7))
    guarded = {id(n) for i in ast.walk(tree) if isinstance(i, ast.If) for n in ast.walk(i) if i is not n}
    modules: list[Any] = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and id(n) not in guarded]
    assert not [n.module for n in modules if (n.module or "").startswith("moat")]


@pytest.mark.anyio
@pytest.mark.parametrize("engine", [{}], indirect=True)
async def test_an_answer_that_nobody_wants_any_more_is_not_waited_for(engine: Impostor) -> None:
    """A run that fails while it is prepared ends at once, and says nothing of a task."""
    runtime = DockerRuntime(engine.path)
    runtime.get_ready("run_1", memory=0, pids=99, cpus=0.0)
    async with asyncio.timeout(5):
        await runtime.aclose()
        await runtime.aclose()
