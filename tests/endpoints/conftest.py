"""Two runs with endpoints at one gateway: `alpha` in an embedded sandbox, `beta` in a container."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from moat.paths import Home

INSIDE = Path(__file__).parent / "inside"
PORTS = {"web": 3000, "same": 3000, "wide": 3001, "six": 3002, "nobody": 3999}


@dataclass
class Place:
    """A MOAT_HOME of its own, and the commands of its user."""

    directory: Path
    moat: str
    environment: dict[str, str]

    @property
    def home(self) -> Home:
        return Home(Path(self.environment["MOAT_HOME"]))

    @property
    def port(self) -> int:
        return int(json.loads((self.home.endpoints / "gateway.json").read_bytes())["port"])

    def command(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"timeout": 90, "env": self.environment} | options
        return subprocess.run(
            [self.moat, *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
            **options,
        )  # fmt: skip

    def workspace(self, name: str, config: str = "") -> Path:
        place = self.directory / name
        place.mkdir(exist_ok=True)
        shutil.copy(INSIDE / "server.py", place)
        (place / "agent.yaml").write_text(config or f"ports: {json.dumps(PORTS)}\ndependencies: [python]\n")
        return place

    def start(self, name: str, runtime: str, *command: str, config: str = "") -> str:
        """A run in the background; its id."""
        done = self.command(
            "run", str(self.workspace(name, config)), "-d", "--name", name, "--runtime", runtime, "--",
            *(command or ("python3", "/workspace/server.py")),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def record(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.home.run(run_id) / "run.json").read_bytes())
        return found

    # --- as a program of the host ------------------------------------------------------------------

    def connect(self, host: str, *, tls: bool = True, address: str = "127.0.0.1") -> socket.socket:
        """A connection to the gateway, for `host`."""
        sock = socket.create_connection((address, self.port), timeout=20)
        if not tls:
            return sock
        context = ssl.create_default_context(cafile=str(self.home.endpoints / "ca.crt"))
        return context.wrap_socket(sock, server_hostname=host)

    def ask(
        self, host: str, path: str = "/", *, method: str = "GET", tls: bool = True, body: bytes = b"",
        address: str = "127.0.0.1", **headers: str,
    ) -> Answer:  # fmt: skip
        fields = {"Host": f"{host}:{self.port}", "Connection": "close"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        if body:
            fields["Content-Length"] = str(len(body))
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        with self.connect(host, tls=tls, address=address) as sock:
            sock.sendall("\r\n".join([*lines, "", ""]).encode() + body)
            return read_answer(sock, method)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def read_answer(sock: socket.socket, method: str = "GET") -> Answer:
    response = HTTPResponse(sock, method=method)
    response.begin()
    return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


def wait_until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return value


def end(place: Place) -> None:
    """Every run, and the gateway."""
    place.command("stop", "--all")
    place.command("clean", "--yes")
    file = place.home.endpoints / "gateway.json"
    if file.exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(json.loads(file.read_bytes())["pid"], signal.SIGKILL)


def make_place(directory: Path, moat_bin: str) -> Place:
    user = directory / "user"
    user.mkdir(parents=True)
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(user), "MOAT_HOME": str(user / ".moat"), "LANG": "C.UTF-8",
        "XDG_RUNTIME_DIR": tempfile.mkdtemp(prefix="mt-", dir="/tmp"),
    }  # fmt: skip
    return Place(directory, moat_bin, environment)


@pytest.fixture
def place(tmp_path: Path, moat_bin: str) -> Iterator[Place]:
    """A user who has nothing yet."""
    value = make_place(tmp_path / "place", moat_bin)
    yield value
    end(value)
    shutil.rmtree(value.environment["XDG_RUNTIME_DIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, moat_bin: str) -> Iterator[Place]:
    """`alpha` and `beta` are alive and serve."""
    value = make_place(tmp_path_factory.mktemp("endpoints"), moat_bin)
    try:
        for name, runtime in (("alpha", "embedded"), ("beta", "docker")):
            value.start(name, runtime)
            wait_until(lambda name=name: value.ask(f"web.{name}.localhost").status == 200)
        yield value
    finally:
        end(value)
        shutil.rmtree(value.environment["XDG_RUNTIME_DIR"], ignore_errors=True)


@pytest.fixture(
    params=[
        pytest.param("alpha", marks=pytest.mark.embedded, id="embedded"),
        pytest.param("beta", marks=pytest.mark.docker, id="docker"),
    ],
    scope="session",
)
def run(request: pytest.FixtureRequest) -> str:
    """The name of a run of each runtime."""
    return str(request.param)
