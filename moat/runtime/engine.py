"""The one importer of aiodocker: the engine's calls that Moat makes, as typed functions.

Import this module late: aiodocker brings aiohttp, together a quarter of a second.
"""

# ruff: noqa: TID253 - its one importer, itself imported late

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import aiodocker
import aiohttp
from aiodocker.execs import Exec
from aiodocker.stream import Stream

from moat.errors import MoatError
from moat.runtime.sandbox import Output
from moat.runtime.size import Size

# Never None: that means ctrl-p,ctrl-q, and ^P would be swallowed until the next key.
_DETACH_KEYS = "ctrl-^,ctrl-^,ctrl-@,ctrl-^"
_LOOK = 0.05  # seconds between two looks at a command that has closed its output
_NO_CONNECTION = 900  # a status of aiodocker's own


class EngineError(MoatError):
    """The engine refused, or went away. `status` is its HTTP status; 0: none."""

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Errors of aiodocker as EngineError."""
    try:
        yield
    except aiodocker.DockerError as error:
        if error.status == _NO_CONNECTION:
            raise EngineError(f"the Docker engine does not answer: {error.message}") from None
        raise EngineError(error.message, status=error.status) from None
    except (OSError, TimeoutError, aiohttp.ClientError) as error:
        raise EngineError(f"the Docker engine went away: {error}") from None


class _tolerating(contextlib.AbstractContextManager[None]):  # noqa: N801 - reads like a function
    """Swallows an EngineError with one of these statuses."""

    def __init__(self, *statuses: int) -> None:
        self._statuses = statuses

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return isinstance(error, EngineError) and error.status in self._statuses


class Engine:
    """A connection pool to the engine at one unix socket. Close it."""

    def __init__(self, path: Path, *, api_version: str) -> None:
        """`api_version`: as the engine told it (`1.41`); asking once more would cost a round trip."""
        self._docker = aiodocker.Docker(url=f"unix://{path}", api_version=f"v{api_version}")

    async def close(self) -> None:
        await self._docker.close()
        await asyncio.sleep(0)  # transports finish closing in the loop's next round

    async def image_id(self, reference: str) -> str | None:
        """The id (`sha256:…`) of a local image; None when there is none of that name."""
        details = await self.image(reference)
        return str(details["Id"]) if details else None

    async def image(self, reference: str) -> dict[str, Any] | None:
        """`docker image inspect`; None when there is no such image."""
        with _tolerating(404), _translated():
            return dict(await self._docker.images.inspect(reference))
        return None

    async def remove_image(self, identifier: str) -> None:
        """Remove an image by id; one that is gone, or that something still uses, is left as it is."""
        with _tolerating(404, 409), _translated():
            await self._docker.images.delete(identifier)

    async def pull(self, reference: str) -> AsyncIterator[str]:
        """Pull an image; yields the engine's status lines, without those that only count bytes."""
        with _translated():
            async for message in self._docker.images.pull(reference, stream=True):
                text = str(message.get("status", ""))
                if text and not message.get("progressDetail"):
                    yield f"{message['id']}: {text}" if message.get("id") else text

    async def build(
        self, context: IO[bytes], *, tag: str, arguments: Mapping[str, str], fresh: bool, buildkit: bool
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Build a tar of a context; yields the engine's messages: `stream`, `error`, BuildKit's `aux`.

        aiodocker's own call knows the classic builder only.
        """
        parameters = {
            "t": tag,
            "buildargs": json.dumps(dict(arguments)),
            "nocache": str(int(fresh)),
            "rm": "1",
            "forcerm": "1",
            "version": "2" if buildkit else "1",
        }
        request = self._docker._query(
            "build",
            "POST",
            params=parameters,
            headers={"Content-Type": "application/x-tar"},
            data=_pieces(context),
            timeout=aiohttp.ClientTimeout(total=None),
        )
        with _translated():
            async with request as response, response:  # aiodocker's own context does not let go of it
                async for line in _json_lines(response.content):
                    yield line

    async def create(self, name: str, config: Mapping[str, Any]) -> str:
        """Create a container; returns its id."""
        with _translated():
            return str((await self._docker.containers.create(dict(config), name=name)).id)

    async def read_file(self, container: str, path: str) -> bytes | None:
        """A file of a container that need not run; None when there is none."""
        with _tolerating(404), _translated():
            archive = await self._docker.containers.container(container).get_archive(path)
            with archive:
                return _first_file(archive)
        return None

    async def put(self, container: str, archive: bytes) -> None:
        """Unpack a tar at the root of a container that need not run."""
        with _translated():
            target = self._docker.containers.container(container)
            await target.put_archive("/", archive)  # type: ignore[no-untyped-call] # aiodocker has no types here

    async def attach(self, container: str, *, stdin: bool) -> Attachment:
        """Attach to a container that has not started: no byte of its output is lost."""
        stream = self._docker.containers.container(container).attach(
            stdin=stdin, stdout=True, stderr=True, detach_keys=_DETACH_KEYS
        )
        with _translated():
            await stream.__aenter__()
        return Attachment(stream)

    async def start(self, container: str) -> None:
        with _translated():
            await self._docker.containers.container(container).start()

    async def wait(self, container: str) -> int:
        """The exit status, once it has ended. Works on one that has ended already."""
        with _translated():
            return int((await self._docker.containers.container(container).wait())["StatusCode"])

    async def resize(self, container: str, size: Size) -> None:
        """Set the window's size; too early or too late does nothing."""
        with _tolerating(404, 409, 500), _translated():
            await self._docker.containers.container(container).resize(h=size.rows, w=size.columns)

    async def kill(self, container: str, number: int) -> None:
        """Send a signal to the container's first process; one that has ended already is fine."""
        with _tolerating(404, 409), _translated():
            await self._docker.containers.container(container).kill(signal=str(number))

    async def pid(self, container: str) -> int:
        """The host's number of a container's first process; 0: it does not run."""
        with _tolerating(404), _translated():
            details = await self._docker.containers.container(container).show()
            return int(details["State"]["Pid"] or 0)
        return 0

    async def pause(self, container: str) -> None:
        """Freeze every process of a running container; one that is frozen already is fine."""
        with _tolerating(409), _translated():
            await self._docker.containers.container(container).pause()

    async def unpause(self, container: str) -> None:
        """Let a container go on; one that is not frozen, or gone, is fine."""
        with _tolerating(404, 409, 500), _translated():
            await self._docker.containers.container(container).unpause()

    async def run_inside(self, container: str, command: list[str]) -> int:
        """Run a short command in a running container, as its user; returns its exit status."""
        with _tolerating(404, 409), _translated():
            execution = await self._docker.containers.container(container).exec(command)
            streams = Attachment(execution.start(detach=False))
            try:
                while await streams.read() is not None:
                    pass
            finally:
                streams.close()
            return int((await execution.inspect())["ExitCode"] or 0)
        return 1

    async def execute(
        self, container: str, command: list[str], *, terminal: bool, stdin: bool
    ) -> ContainerExecution:
        """Start a command in a running container, as its user."""
        with _translated():
            execution = await self._docker.containers.container(container).exec(
                command,
                stdin=stdin,
                tty=terminal,
                environment={"TERM": "xterm-256color"} if terminal else None,
                detach_keys=_DETACH_KEYS,
            )
            stream = execution.start(detach=False)
            await stream.__aenter__()
        return ContainerExecution(execution, Attachment(stream), terminal=terminal)

    async def running(self, container: str) -> bool:
        with _tolerating(404), _translated():
            details = await self._docker.containers.container(container).show()
            return bool(details["State"]["Running"])
        return False

    async def out_of_memory(self, container: str) -> bool:
        """Whether the kernel ended something in it for want of memory."""
        with _tolerating(404), _translated():
            details = await self._docker.containers.container(container).show()
            return bool(details["State"].get("OOMKilled"))
        return False

    async def log(self, container: str, lines: int) -> list[str]:
        """The last lines that a container printed, which keeps a log."""
        with _tolerating(404), _translated():
            source = self._docker.containers.container(container)
            text = "".join(await source.log(stdout=True, stderr=True, tail=lines))
            return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]
        return []

    async def remove(self, container: str) -> None:
        """Kill and remove, with anonymous volumes; one that is gone is fine, and so is one on its way."""
        with _tolerating(404, 409), _translated():
            await self._docker.containers.container(container).delete(force=True, v=True)


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(file.read, 1 << 20):
        yield piece


async def _json_lines(content: aiohttp.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """One object a line; BuildKit's are longer than what aiohttp takes for a line."""
    rest = b""
    async for piece in content.iter_any():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.strip():
                yield json.loads(line)
    if rest.strip():
        yield json.loads(rest)


def _first_file(archive: tarfile.TarFile) -> bytes | None:
    for member in archive:
        file = archive.extractfile(member) if member.isreg() else None
        if file:
            return file.read()
    return None


class Attachment:
    """The streams of one container."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def read(self) -> Output | None:
        """The next piece; None at the end. Not reading holds the container's output back."""
        with _translated():
            message = await self._stream.read_out()
        if message is None:
            return None
        return Output("stderr" if message.stream == 2 else "stdout", bytes(message.data))

    async def write(self, data: bytes) -> None:
        """Waits while the container does not read. What comes after its end is dropped."""
        if self._transport() is not None:
            with contextlib.suppress(OSError, EngineError), _translated():
                await self._stream.write_in(data)

    def write_eof(self) -> None:
        """Half-close: the container's stdin ends, its output goes on. aiodocker has no public way."""
        transport = self._transport()
        if transport is not None and transport.can_write_eof():
            transport.write_eof()

    def _transport(self) -> Any:
        response = self._stream._resp
        return response.connection.transport if response and response.connection else None

    def close(self) -> None:
        """Drop the connection with whatever is on its way: closing it by aiodocker would wait for that."""
        transport = self._transport()
        if transport is not None:
            transport.abort()
        if self._stream._resp:
            self._stream._resp.close()
        self._stream._closed = True


class ContainerExecution:
    """Implements `sandbox.Execution`."""

    def __init__(self, execution: Exec, streams: Attachment, *, terminal: bool) -> None:
        self._execution = execution
        self._streams = streams
        self._terminal = terminal

    async def read(self) -> Output | None:
        return await self._streams.read()

    async def write(self, data: bytes) -> None:
        await self._streams.write(data)

    async def close_stdin(self) -> None:
        if not self._terminal:
            self._streams.write_eof()

    async def resize(self, size: Size) -> None:
        with _tolerating(404, 409, 500), _translated():
            await self._execution.resize(h=size.rows, w=size.columns)

    async def signal(self, number: int) -> None:
        """The engine has no call for it; on Linux its processes are this machine's."""
        status = await self._inspect()
        if status["Running"] and status["Pid"]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(int(status["Pid"]), number)

    async def wait(self) -> int:
        """The exit status. Call it after the last `read`."""
        while (status := await self._inspect())["Running"]:
            await asyncio.sleep(_LOOK)
        return int(status["ExitCode"] or 0)

    async def _inspect(self) -> dict[str, Any]:
        with _translated():
            return await self._execution.inspect()

    async def close(self) -> None:
        with contextlib.suppress(EngineError):  # the engine, or the container, went away: so has the command
            await self.signal(signal.SIGKILL)
        self._streams.close()
