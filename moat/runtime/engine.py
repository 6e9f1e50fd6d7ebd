"""The engine's calls that Moat makes, as typed functions."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlencode

import anyio

from moat.runtime.engine_http import EngineError, Exchange, Refusals, decoded, within
from moat.runtime.engine_streams import Attachment, ContainerExecution, Ending
from moat.runtime.size import Size

# Never none: that means ctrl-p,ctrl-q, and ^P would be swallowed until the next key.
_DETACH_KEYS = "ctrl-^,ctrl-^,ctrl-@,ctrl-^"
_BEING_REMOVED = 409
_PATIENCE = 60.0  # seconds for an answer: on a busy machine a container takes a while to make and to start
_QUICK = 10.0  # for what an engine that is well does in a moment; `moat stop` waits for it
_ENDLESS = math.inf  # the answer is that a container has ended


class Engine:
    """The engine at one unix socket. Its calls raise EngineError, also when it takes too long."""

    def __init__(self, path: Path, *, api_version: str) -> None:
        """`api_version`: as the engine told it (`1.41`)."""
        self._path = path
        self._version = api_version

    # --- images ----------------------------------------------------------------------------------

    async def image_id(self, reference: str) -> str | None:
        """The id (`sha256:…`) of a local image; None when there is none of that name."""
        details = await self.image(reference)
        return str(details["Id"]) if details else None

    async def image(self, reference: str) -> dict[str, Any] | None:
        """`docker image inspect`; None when there is no such image."""
        with Refusals(404):
            return dict(await self._ask("GET", f"/images/{quote(reference)}/json"))
        return None

    async def remove_image(self, identifier: str) -> None:
        """Remove an image by id; one that is gone, or that something still uses, is left as it is."""
        with Refusals(404, 409):
            await self._ask("DELETE", f"/images/{quote(identifier)}")

    def pull(self, reference: str) -> AsyncIterator[str]:
        """Pull an image; yields the engine's status lines, without those that only count bytes."""
        from moat.runtime import engine_images

        return engine_images.pull(self._path, self._version, reference)

    def build(
        self, context: IO[bytes], *, tag: str, arguments: Mapping[str, str], fresh: bool, buildkit: bool
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Build a tar of a context; yields the engine's messages: `stream`, `error`, BuildKit's `aux`."""
        from moat.runtime import engine_images

        options: dict[str, Any] = {"tag": tag, "arguments": arguments, "fresh": fresh, "buildkit": buildkit}
        return engine_images.build(self._path, self._version, context, **options)

    # --- containers ------------------------------------------------------------------------------

    async def create(self, name: str, config: Mapping[str, Any]) -> str:
        """Create a container; returns its id.

        The engine goes on when nobody waits for its answer: who is cancelled takes back what it makes.
        """
        making = asyncio.ensure_future(self._ask("POST", "/containers/create", {"name": name}, config))
        try:
            return str((await asyncio.shield(making))["Id"])
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True), contextlib.suppress(EngineError):
                await self.remove(str((await making)["Id"]))
            raise

    async def read_file(self, container: str, path: str) -> bytes | None:
        """A file of a container that need not run; None when there is none."""
        with Refusals(404):
            data = await self._bytes("GET", f"{_of(container)}/archive", {"path": path})
            return _first_file(data)
        return None

    async def mode(self, container: str, path: str) -> int | None:
        """The permissions of a file of a container that need not run; None when there is none."""
        with Refusals(404):
            exchange = await self._begin("HEAD", f"{_of(container)}/archive", {"path": path})
            with contextlib.closing(exchange):
                told = exchange.headers[b"x-docker-container-path-stat"]
            return int(json.loads(base64.b64decode(told))["mode"]) & 0o777
        return None

    async def put(self, container: str, archive: bytes) -> None:
        """Unpack a tar at the root of a container that need not run."""
        target = f"{_of(container)}/archive"
        await self._bytes("PUT", target, {"path": "/"}, archive, content="application/x-tar")

    async def attach(self, container: str, *, stdin: bool, terminal: bool) -> Attachment:
        """Attach to a container that has not started: no byte of its output is lost."""
        streams = {"stream": 1, "stdin": int(stdin), "stdout": 1, "stderr": 1, "detachKeys": _DETACH_KEYS}
        exchange = await self._begin("POST", f"{_of(container)}/attach", streams, upgrade=True)
        return Attachment(exchange, terminal=terminal)

    async def start(self, container: str) -> None:
        await self._ask("POST", f"{_of(container)}/start")

    async def ending(self, container: str) -> Ending:
        """How a container that has not started ends."""
        target = f"{_of(container)}/wait"
        return Ending(await self._begin("POST", target, {"condition": "next-exit"}))

    async def wait(self, container: str) -> int:
        """The exit status, once it has ended. Works on one that has ended already."""
        target = f"{_of(container)}/wait"
        return int((await self._ask("POST", target, patience=_ENDLESS))["StatusCode"])

    async def resize(self, container: str, size: Size) -> None:
        """Set the window's size; too early or too late does nothing, nor does an engine that stands still."""
        with Refusals(0, 404, 409, 500):
            await self._ask("POST", f"{_of(container)}/resize", _window(size), patience=_QUICK)

    async def kill(self, container: str, number: int) -> None:
        """Send a signal to the container's first process; one that has ended already is fine."""
        with Refusals(404, 409):
            await self._ask("POST", f"{_of(container)}/kill", {"signal": number}, patience=_QUICK)

    async def pid(self, container: str) -> int:
        """The host's number of a container's first process; 0: it does not run."""
        return int((await self._state(container)).get("Pid") or 0)

    async def running(self, container: str) -> bool:
        return bool((await self._state(container)).get("Running"))

    async def out_of_memory(self, container: str) -> bool:
        """Whether the kernel ended something in it for want of memory."""
        return bool((await self._state(container)).get("OOMKilled"))

    async def _state(self, container: str) -> dict[str, Any]:
        """Empty for one that is gone."""
        with Refusals(404):
            return dict((await self._ask("GET", f"{_of(container)}/json", patience=_QUICK))["State"])
        return {}

    async def pause(self, container: str) -> None:
        """Freeze every process of a running container; one that is frozen already is fine."""
        with Refusals(409):
            await self._ask("POST", f"{_of(container)}/pause")

    async def unpause(self, container: str) -> None:
        """Let a container go on; one that is not frozen, or gone, is fine."""
        with Refusals(404, 409, 500):
            await self._ask("POST", f"{_of(container)}/unpause")

    async def log(self, container: str, lines: int) -> list[str]:
        """The last lines that a container without a terminal printed, which keeps a log."""
        query = {"stdout": 1, "stderr": 1, "tail": lines}
        with Refusals(404):
            text = _without_heads(await self._bytes("GET", f"{_of(container)}/logs", query)).decode(
                errors="replace"
            )
            return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]
        return []

    async def remove(self, container: str) -> None:
        """Kill and remove, with anonymous volumes; returns when it is gone, whoever removes it."""
        with Refusals(404):
            try:
                await self._ask("DELETE", _of(container), {"force": 1, "v": 1})
            except EngineError as error:
                if error.status != _BEING_REMOVED:
                    raise
                await self._ask("POST", f"{_of(container)}/wait", {"condition": "removed"})

    # --- further commands in a container -----------------------------------------------------------

    async def run_inside(self, container: str, command: list[str]) -> int:
        """Run a short command in a running container, as its user; returns its exit status."""
        with Refusals(404, 409):
            execution = await self.execute(container, command, terminal=False, stdin=False)
            try:
                with within(_PATIENCE):
                    while await execution.read() is not None:
                        pass
                    return await execution.wait()
            finally:
                await execution.close()
        return 1

    async def execute(
        self,
        container: str,
        command: list[str],
        *,
        terminal: bool,
        stdin: bool,
        environment: Mapping[str, str] | None = None,
    ) -> ContainerExecution:
        """Start a command in a running container, as its user."""
        wanted = {
            "Cmd": command,
            "AttachStdin": stdin,
            "AttachStdout": True,
            "AttachStderr": True,
            "Tty": terminal,
            "DetachKeys": _DETACH_KEYS,
            "Env": [f"{name}={value}" for name, value in (environment or {}).items()],
        }
        made = await self._ask("POST", f"{_of(container)}/exec", None, wanted, patience=_QUICK)
        target = f"/exec/{made['Id']}"

        async def inspect() -> dict[str, Any]:
            return dict(await self._ask("GET", f"{target}/json", patience=_QUICK))

        async def resize(size: Size) -> None:
            with Refusals(0, 404, 409, 500):
                await self._ask("POST", f"{target}/resize", _window(size), patience=_QUICK)

        start = json.dumps({"Detach": False, "Tty": terminal}).encode()
        exchange = await self._begin("POST", f"{target}/start", None, start, upgrade=True)
        streams = Attachment(exchange, terminal=terminal)
        return ContainerExecution(streams, terminal=terminal, inspect=inspect, resize=resize)

    # --- requests --------------------------------------------------------------------------------

    async def _begin(
        self,
        method: str,
        target: str,
        query: Mapping[str, Any] | None = None,
        body: bytes = b"",
        **how: Any,
    ) -> Exchange:
        """Only the head of the answer has its time here: what follows may be a stream."""
        asked = f"?{urlencode(query)}" if query else ""
        with within(_PATIENCE):
            return await Exchange.begin(self._path, method, f"/v{self._version}{target}{asked}", body, **how)

    async def _bytes(
        self,
        method: str,
        target: str,
        query: Mapping[str, Any] | None = None,
        body: bytes = b"",
        *,
        patience: float | None = None,
        **how: Any,
    ) -> bytes:
        with within(_PATIENCE if patience is None else patience):
            exchange = await self._begin(method, target, query, body, **how)
            with contextlib.closing(exchange):
                return await exchange.body()

    async def _ask(
        self,
        method: str,
        target: str,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        *,
        patience: float | None = None,
    ) -> Any:
        """The answer's JSON; None when it has none."""
        data = json.dumps(body).encode() if body else b""
        return decoded(await self._bytes(method, target, query, data, patience=patience))


def _of(container: str) -> str:
    return f"/containers/{quote(container)}"


def _window(size: Size) -> dict[str, int]:
    return {"h": size.rows, "w": size.columns}


def _without_heads(log: bytes) -> bytes:
    """A log without what is before each piece: which stream, how long."""
    text, at = bytearray(), 0
    while at + 8 <= len(log):
        length = int.from_bytes(log[at + 4 : at + 8], "big")
        text += log[at + 8 : at + 8 + length]
        at += 8 + length
    return bytes(text)


def _first_file(data: bytes) -> bytes | None:
    import tarfile  # for an image that nobody has looked at yet

    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() else None
            if file:
                return file.read()
    return None
