"""Sandboxes for tests: a real one each time, with a fake egress that answers on the listeners it is given.

Also a program: `python embedded_kit.py` reads one `Order` as JSON, runs it and prints a `Result`. That is
how tests look at the runtime as an unprivileged user (`run(..., who="user")`), with the system's python.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import dataclasses
import functools
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from moat.runtime import launcher
from moat.runtime.dnsstub import MAX_QUERY, NameTable, answer
from moat.runtime.embedded import EmbeddedRuntime, EmbeddedSandbox
from moat.runtime.sandbox import HOST_ADDRESS, HOST_NAME, EgressSockets, HomeFile, Mount, SandboxSpec
from moat.runtime.size import Size

USER_UID = 48211  # an unprivileged user that nothing else on the machine is
SYSTEM_PYTHON = "/usr/bin/python3"
BUNDLE = b"-----BEGIN CERTIFICATE-----\ntest\n-----END CERTIFICATE-----\n"
EVERYBODY = ("root", "user") if os.geteuid() == 0 else ("user",)


class FakeEgress:
    """Says on every connection which listener it came in by and what name it was meant for."""

    def __init__(self) -> None:
        self.names = NameTable({HOST_NAME: HOST_ADDRESS})
        self.sockets: EgressSockets | None = None
        self._servers: list[asyncio.Server] = []
        self._dns: socket.socket | None = None

    async def serve_unix(self, path: Path, uid: int) -> None:
        raise AssertionError("the embedded runtime has no use for a unix socket")

    async def serve_sockets(self, sockets: EgressSockets) -> None:
        self.sockets = sockets
        named = [("proxy", sockets.proxy), ("http", sockets.http), ("https", sockets.https)]
        named += [(f"host {port}", fd) for port, fd in sockets.host_ports]
        for name, fd in named:
            await self._listen(name, fd)
        self._dns = socket.socket(fileno=sockets.dns)
        self._dns.setblocking(False)
        asyncio.get_running_loop().add_reader(self._dns, self._answer)

    async def _listen(self, name: str, fd: int) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            address = writer.get_extra_info("sockname")[0]
            writer.write(f"{name} for {self.names.name(address) or address}\n".encode())
            with contextlib.suppress(OSError):
                await writer.drain()
            writer.close()

        self._servers.append(await asyncio.start_server(serve, sock=socket.socket(fileno=fd)))

    def _answer(self) -> None:
        assert self._dns is not None
        query, sender = self._dns.recvfrom(MAX_QUERY + 1)
        reply = answer(query, self.names)
        if reply is not None:
            self._dns.sendto(reply, sender)

    async def aclose(self) -> None:
        if self._dns is not None:
            asyncio.get_running_loop().remove_reader(self._dns)
            self._dns.close()
        for server in self._servers:
            server.close()
            await server.wait_closed()


@dataclasses.dataclass
class Order:
    argv: list[str]
    workspace: str = ""  # default: a fresh one
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    mounts: list[tuple[str, str, bool]] = dataclasses.field(default_factory=list)
    home_files: list[tuple[str, str, int]] = dataclasses.field(default_factory=list)
    host_ports: list[int] = dataclasses.field(default_factory=list)
    tty: tuple[int, int] | None = None
    stdin: str | None = None
    memory: int = 0
    cpus: float = 0.0
    pids: int = 1024
    ingress: bool = False
    beside: list[str] = dataclasses.field(default_factory=list)  # a further command, whose result is told
    swap: list[str] = dataclasses.field(
        default_factory=list
    )  # a path, and where it leads from the last moment on


@dataclasses.dataclass
class Result:
    status: int
    stdout: str
    stderr: str
    limits: dict[str, str]
    seconds: float  # from the call of create() to the first output


def spec_of(order: Order, workspace: Path, run_id: str) -> SandboxSpec:
    return SandboxSpec(
        run_id=run_id,
        argv=tuple(order.argv),
        workspace=Path(order.workspace or workspace),
        ca_bundle=BUNDLE,
        directory=workspace,
        env=order.env,
        mounts=tuple(Mount.of(Path(source), target, read_only=ro) for source, target, ro in order.mounts),
        home_files=tuple(HomeFile(path, data.encode(), mode) for path, data, mode in order.home_files),
        host_ports=tuple(order.host_ports),
        tty=Size(*order.tty) if order.tty else None,
        stdin=order.stdin is not None,
        memory=order.memory,
        cpus=order.cpus,
        pids=order.pids,
        ingress=order.ingress,
    )


@contextlib.asynccontextmanager
async def sandbox(*argv: str, **options: Any) -> AsyncIterator[EmbeddedSandbox]:
    """A sandbox that has not started; `options` are fields of Order."""
    order = Order(list(argv), **options)
    egress = FakeEgress()
    with tempfile.TemporaryDirectory(prefix="mt-") as directory:
        run_id = f"run_{Path(directory).name}"
        spec = spec_of(order, Path(directory), run_id)
        made = await EmbeddedRuntime().create(spec, egress, lambda _line: None)
        try:
            yield made
        finally:
            await made.destroy()
            await egress.aclose()


async def collect(made: EmbeddedSandbox) -> tuple[bytes, bytes]:
    streams = {"stdout": bytearray(), "stderr": bytearray()}
    while output := await made.read():
        streams[output.stream] += output.data
    return bytes(streams["stdout"]), bytes(streams["stderr"])


async def execute(order: Order) -> Result:
    """Run an order from start to end in this process."""
    begun = time.monotonic()
    first = 0.0
    streams = {"stdout": bytearray(), "stderr": bytearray()}
    fields = {field.name: getattr(order, field.name) for field in dataclasses.fields(order)}
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_swapped(order.swap))
        made = await stack.enter_async_context(sandbox(*fields.pop("argv"), **fields))
        await made.start()
        if order.stdin is not None:
            await made.write(order.stdin.encode())
            await made.close_stdin()
        told = made if not order.beside else await made.execute(tuple(order.beside), tty=None, stdin=False)
        while output := await told.read():
            first = first or time.monotonic() - begun
            streams[output.stream] += output.data
        status = await told.wait()
        if told is not made:
            await told.close()
    texts = {name: bytes(data).decode(errors="replace") for name, data in streams.items()}
    return Result(status, texts["stdout"], texts["stderr"], made.limits, first)


@contextlib.contextmanager
def _swapped(names: list[str]) -> Iterator[None]:
    """The first of `names` becomes a link to the second when all is judged, and nothing is mounted yet."""
    launch = launcher.launch

    def after_the_swap(*args: Any, **options: Any) -> launcher.Launch:
        os.rename(names[0], f"{names[0]}.was")
        os.symlink(names[1], names[0])
        return launch(*args, **options)

    with mock.patch.object(launcher, "launch", after_the_swap if names else launch):
        yield


def run(*argv: str, who: str = "root", **options: Any) -> Result:
    """Run one order as root or as an unprivileged user; raises AssertionError with what went wrong."""
    order = Order(list(argv), **options)
    if who == "root" or os.geteuid() != 0:
        return asyncio.run(execute(order))
    return _run_as_user(order)


def run_python(code: str, *arguments: str, who: str = "root", **options: Any) -> Any:
    """Run a Python program inside; it prints one JSON value, which is returned."""
    result = run(SYSTEM_PYTHON, "-I", "-c", code, *arguments, who=who, **options)
    assert result.status == 0, result.stderr or result.stdout
    return json.loads(result.stdout)


def _run_as_user(order: Order) -> Result:
    with user_directory() as (directory, command):
        if not order.workspace:
            order.workspace = str(directory / "workspace")
        text = json.dumps(dataclasses.asdict(order))
        done = subprocess.run(
            [*command, str(directory / "kit.py")], input=text, capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stderr
    return Result(**json.loads(done.stdout))


@contextlib.contextmanager
def user_directory() -> Iterator[tuple[Path, list[str]]]:
    """A place the unprivileged user owns, with `kit.py` and a workspace, and the command of its python."""
    directory = Path(tempfile.mkdtemp(prefix="mt-user-", dir="/tmp"))
    try:
        shutil.copy(__file__, directory / "kit.py")
        (directory / "workspace").mkdir()
        for path in (directory, directory / "kit.py", directory / "workspace"):
            os.chown(path, USER_UID, USER_UID)
        directory.chmod(0o755)
        environment = [
            "env",
            "-i",
            f"PYTHONPATH={_library()}",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME=/",
        ]
        drop = ["setpriv", f"--reuid={USER_UID}", f"--regid={USER_UID}", "--clear-groups", "--inh-caps=-all"]
        yield directory, [*drop, *environment, SYSTEM_PYTHON]
    finally:
        shutil.rmtree(directory)


@functools.cache
def _library() -> Path:
    """What the user needs of Moat: copies, because the tree and its environment may lie below /root."""
    directory = Path(tempfile.mkdtemp(prefix="mt-library-", dir="/tmp"))
    atexit.register(shutil.rmtree, directory)
    directory.chmod(0o755)
    for name in ("moat", "anyio", "idna", "typing_extensions", "sniffio"):
        with contextlib.suppress(ModuleNotFoundError):
            _copy_module(name, directory)
    return directory


@contextlib.contextmanager
def held(
    who: str, *, started: bool, argv: list[str], **options: Any
) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A supervisor of its own process that made a sandbox and waits to be killed; what it made."""
    with user_directory() as (directory, of_user):
        command = ["env", f"PYTHONPATH={_library()}", sys.executable] if who == "root" else of_user
        order = Order(argv, workspace=str(directory / "workspace"), **options)
        arguments = [*command, str(directory / "kit.py"), "hold", "started" if started else "created"]
        with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(dataclasses.asdict(order)))
            process.stdin.close()
            about = json.loads(process.stdout.readline())
            try:
                yield process, about
            finally:
                process.kill()
                asyncio.run(EmbeddedRuntime().reap(about["run_id"]))


async def hold(order: Order, *, started: bool) -> None:
    made = await EmbeddedRuntime().create(
        spec_of(order, Path(order.workspace), f"run_hold{os.getpid()}"), FakeEgress(), lambda _line: None
    )
    if started:
        await made.start()
        await made.read()
    about = {
        "init": made._init_pid,
        "bwrap": made._process.pid,
        "run_id": made._run_id,
        "workspace": order.workspace,
    }
    print(json.dumps(about), flush=True)
    await asyncio.sleep(600)


def _copy_module(name: str, directory: Path) -> None:
    source = Path(str(importlib.import_module(name).__file__))
    if source.name == "__init__.py":
        shutil.copytree(source.parent, directory / name)
    else:
        shutil.copy(source, directory)


def processes() -> dict[int, str]:
    """Every process that is alive (a zombie waits for somebody else's init), with its command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z":
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def wait_until(condition: Any, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


if __name__ == "__main__":
    fields = json.load(sys.stdin)
    if fields["tty"]:
        fields["tty"] = tuple(fields["tty"])
    if sys.argv[1:2] == ["hold"]:
        asyncio.run(hold(Order(**fields), started=sys.argv[2] == "started"))
    print(json.dumps(dataclasses.asdict(asyncio.run(execute(Order(**fields))))))
