"""HTTP over the engine's socket, one connection for each request: no more than what every run needs.

A client library would cost a run a fifth of a second for its import alone, and gives no way to end one
direction of a stream, or to drop it. Heads and chunks are read by the parsers of the proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from moat.errors import MoatError
from moat.proxy.chunked import ChunkedReader
from moat.proxy.http1 import Framing, MalformedError, ResponseHead, parse_response
from moat.proxy.limits import Limits

_LIMITS = Limits()
_PIECE = 65536
_SWITCHED = 101


class EngineError(MoatError):
    """The engine refused, or went away. `status` is its HTTP status; 0: none."""

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
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


class Exchange:
    """One request whose answer has begun. Close it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._head: ResponseHead | None = None
        self._chunks = ChunkedReader(_LIMITS, blame="upstream")
        self._received = bytearray()

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
            exchange = cls(*await asyncio.open_unix_connection(str(path)))
            try:
                await exchange._ask(method, target, body, content, upgrade=upgrade)
            except BaseException:
                exchange.close()
                raise
        return exchange

    async def _ask(self, method: str, target: str, body: bytes, content: str, *, upgrade: bool) -> None:
        lines = [
            f"{method} {target} HTTP/1.1",
            "Host: docker",
            f"Content-Type: {content}",
            f"Content-Length: {len(body)}",
            *(("Connection: Upgrade", "Upgrade: tcp") if upgrade else ("Connection: close",)),
        ]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await self.writer.drain()
        block = await self.reader.readuntil(b"\r\n\r\n")
        self._head = parse_response(block, method.encode(), _LIMITS, upgrade=b"tcp" if upgrade else b"")
        status = self._head.status if self._head else 0
        if status >= 400 or (upgrade and status != _SWITCHED):
            raise EngineError(_reason(await self.body()), status=status)

    @property
    def headers(self) -> dict[bytes, bytes]:
        """Of the answer; names in lower case."""
        return {name.lower(): value for name, value in self._head.headers} if self._head else {}

    async def body(self) -> bytes:
        """All of it. A reader that is cancelled may ask again."""
        assert self._head is not None
        with translated():
            while not self._complete(self._head):
                data = await self.reader.read(_PIECE)
                if not data and self._head.framing is Framing.UNTIL_CLOSE:
                    break
                if not data:
                    raise EOFError("it closed in the middle of an answer")
                self._take(data)
        return bytes(self._received)

    def _complete(self, head: ResponseHead) -> bool:
        match head.framing:
            case Framing.CHUNKED:
                return self._chunks.done
            case Framing.UNTIL_CLOSE:
                return False
        return len(self._received) >= head.length

    def _take(self, data: bytes) -> None:
        assert self._head is not None
        if self._head.framing is not Framing.CHUNKED:
            self._received += data
            return
        for piece in self._chunks.feed(data)[0]:
            self._received += piece

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
