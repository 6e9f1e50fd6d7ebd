"""Sandboxes for tests: a real container, and at the other end of its socket a proxy that only tells what it got."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from moat.config import HooksConfig
from moat.runtime import trust
from moat.runtime.docker import DockerRuntime, DockerSandbox
from moat.runtime.sandbox import Output, SandboxSpec

CACHE = Path(__file__).resolve().parents[2] / ".cache/docker"  # downloads outlive one test's private home


# One image for everything that tests ask of images: it takes a minute to build.
MANY = (
    *(
        "node@22",
        "python",
        "go@1.24",
        "claude-code",
        "uv",
        "ruff",
        "black",
        "just",
        "pip:tabulate",
        "npm:semver",
    ),
    *("git", "jq", "ripgrep", "fd", "psql", "redis-tools", "mysql-client"),
)
HOOKS = HooksConfig(
    post_build_root="id -u > /etc/hooked",
    post_build="echo $(id -u) $HOME $(whoami) > hooked",
)


class Listener:
    """An Egress. Whatever is connected to: CONNECT is answered 200, `*.refused` 403; then data is echoed.

    `heads` are the CONNECT targets; an explicit client that sends anything else is echoed at once.
    """

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.path: Path | None = None
        self._server: asyncio.Server | None = None

    async def serve_unix(self, path: Path, uid: int) -> None:
        self._server = await asyncio.start_unix_server(self._serve, str(path))
        os.chmod(path, 0o600)
        os.chown(path, uid, -1)
        self.path = path

    async def serve_sockets(self, sockets: Any) -> None:
        raise AssertionError(f"a container has no use for {sockets}")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            first = await reader.readexactly(1)
            if first == b"C":
                head = first + await reader.readuntil(b"\r\n\r\n")
                target = head.split()[1].decode()
                self.heads.append(target)
                refused = target.split(":")[0].endswith("refused")
                status = b"403 Forbidden" if refused else b"200 OK"
                writer.write(b"HTTP/1.1 " + status + b"\r\n\r\n")
                first = b""
            writer.write(first)
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.write_eof()
            await writer.drain()
        writer.close()

    def close(self) -> None:
        if self._server:
            self._server.close()


@dataclasses.dataclass
class Result:
    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        assert self.status == 0, (self.status, self.stderr, self.stdout)
        return self.stdout.decode()


@contextlib.contextmanager
def short_directory():
    path = Path(tempfile.mkdtemp(prefix="md-", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def workspace(directory: Path, *, uid: int = 4321) -> Path:
    path = directory / "ws"
    path.mkdir()
    os.chown(path, uid, uid)
    return path


@contextlib.asynccontextmanager
async def sandbox(*argv: str, egress: Listener | None = None, **options: Any) -> AsyncIterator[DockerSandbox]:
    """A started sandbox, destroyed afterwards."""
    with short_directory() as directory:
        listener = egress or Listener()
        spec = SandboxSpec(
            run_id=options.pop("run_id", None) or f"run_{secrets.token_hex(6)}",
            argv=argv,
            workspace=options.pop("workspace", None) or workspace(directory),
            ca_bundle=options.pop("ca_bundle", None) or trust.host_bundle(),
            directory=directory,
            **options,
        )
        try:
            made = await DockerRuntime(CACHE).create(spec, listener, print)
            try:
                await made.start()
                yield made
            finally:
                await made.destroy()
        finally:
            listener.close()


async def finish(made: DockerSandbox) -> Result:
    parts: dict[str, bytes] = {"stdout": b"", "stderr": b""}
    while (output := await made.read()) is not None:
        parts[output.stream] += output.data
    return Result(await made.wait(), parts["stdout"], parts["stderr"])


async def run(*argv: str, egress: Listener | None = None, **options: Any) -> Result:
    """Run to the end."""
    async with sandbox(*argv, egress=egress, **options) as made:
        return await finish(made)


async def read_until(made: DockerSandbox, wanted: bytes) -> bytes:
    """Everything up to and with `wanted`."""
    seen = b""
    async with asyncio.timeout(20):
        while wanted not in seen:
            output: Output | None = await made.read()
            assert output is not None, (wanted, seen)
            seen += output.data
    return seen
