"""HTTP over the engine's socket, one connection for each request: no more than what every run needs.

A client library gives no way to end one direction of a stream, or to drop it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import anyio

from moat.errors import MoatError
from moat.runtime.engine_wire import PIECE, MalformedError, Reply, request

_SWITCHED = 101
_LARGEST = 32 << 20  # bytes of an answer in memory: files of images are among them, and images are strangers'


class EngineError(MoatError):
    """The engine refused, or went away. `status` is its HTTP status; 0: none."""

    def __init__(self, message: str, *, status: int = 0, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class Refusals(contextlib.AbstractContextManager[None]):
    """Swallows an EngineError with one of these statuses."""

    def __init__(self, *statuses: int) -> None:
        self._statuses = statuses

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return isinstance(error, EngineError) and error.status in self._statuses


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """What breaks on the way, as EngineError."""
    try:
        yield
    except (OSError, EOFError, TimeoutError, MalformedError) as error:
        raise EngineError(f"the Docker engine went away: {error}") from None


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """What takes longer is an EngineError: an engine can stand still, and keep its socket."""
    try:
        with anyio.fail_after(seconds):
            yield
    except TimeoutError:
        raise EngineError(
            f"the Docker engine has not answered for {seconds:g} s",
            hint="`docker info` tells whether it is well; `systemctl restart docker` starts it anew",
        ) from None


class Exchange:
    """One request whose answer has begun. Close it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reply: Reply) -> None:
        self.reader = reader
        self.writer = writer
        self._reply = reply

    @classmethod
    async def begin(
        cls,
        path: Path,
        method: str,
        target: str,
        body: bytes = b"",
        *,
        content: str = "application/json",
        upgrade: bool = False,
    ) -> Exchange:
        """Ask; returns once the head of the answer is there. With `upgrade` streams follow it.

        Raises EngineError, for an answer that is a refusal too.
        """
        with translated():
            streams = await asyncio.open_unix_connection(str(path))
            exchange = cls(*streams, Reply(method, upgrade=upgrade))
            try:
                asked = request(method, target, body, content=content, upgrade=upgrade)
                await exchange._ask(asked, upgrade=upgrade)
            except BaseException:
                exchange.close()
                raise
        return exchange

    async def _ask(self, asked: bytes, *, upgrade: bool) -> None:
        self.writer.write(asked)
        await self.writer.drain()
        self._reply.begin(await self.reader.readuntil(b"\r\n\r\n"))
        status = self._reply.status
        if status >= 400 or (upgrade and status != _SWITCHED):
            raise EngineError(_reason(await self.body()), status=status)

    @property
    def headers(self) -> dict[bytes, bytes]:
        """Of the answer; names in lower case."""
        return self._reply.headers

    async def body(self) -> bytes:
        """All of it. A reader that is cancelled may ask again."""
        with translated():
            while not self._reply.complete:
                self._reply.take(await self.reader.read(PIECE))
                if self._reply.size > _LARGEST:
                    raise EngineError(f"the Docker engine answers more than {_LARGEST >> 20} MiB")
        return self._reply.body

    def close(self) -> None:
        """At once: what is on its way is dropped."""
        self.writer.transport.abort()


def _reason(body: bytes) -> str:
    """The engine's own words."""
    with contextlib.suppress(ValueError):
        answer = json.loads(body)
        if isinstance(answer, dict):
            return str(answer.get("message", ""))
    return body.decode(errors="replace").strip()


def decoded(body: bytes) -> Any:
    """An answer's JSON; None when there is none. Raises EngineError."""
    try:
        return json.loads(body) if body else None
    except ValueError:
        raise EngineError("the Docker engine's answer is not JSON") from None
