"""The engine's HTTP as bytes, for whoever waits for them and for whoever blocks. No socket here.

`http.client` or a client library would cost a run more for its import than all its requests take. Heads and
chunks are read by the parsers of the proxy.
"""

from __future__ import annotations

from moat.proxy.chunked import ChunkedReader
from moat.proxy.head import Framing, MalformedError, ResponseHead
from moat.proxy.http1 import parse_response
from moat.proxy.limits import Limits

__all__ = ["PIECE", "MalformedError", "Reply", "request"]

PIECE = 65536  # bytes to read at a time
_LIMITS = Limits()


def request(
    method: str, target: str, body: bytes = b"", *, content: str = "application/json", upgrade: bool = False
) -> bytes:
    """One request of a connection that carries no other. With `upgrade` streams follow its answer."""
    lines = [
        f"{method} {target} HTTP/1.1",
        "Host: docker",
        f"Content-Type: {content}",
        f"Content-Length: {len(body)}",
        *(("Connection: Upgrade", "Upgrade: tcp") if upgrade else ("Connection: close",)),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Reply:
    """An answer, piece by piece. Raises MalformedError for what is none, EOFError for half of one."""

    def __init__(self, method: str, *, upgrade: bool = False) -> None:
        self._method = method.encode()
        self._upgrade = b"tcp" if upgrade else b""
        self._head: ResponseHead | None = None
        self._chunks = ChunkedReader(_LIMITS, blame="upstream")
        self._ended = False
        self._received = bytearray()

    def begin(self, block: bytes) -> None:
        """All up to the empty line."""
        self._head = parse_response(block, self._method, _LIMITS, upgrade=self._upgrade)
        if self._head is None:
            raise EOFError("it closed before it answered")

    @property
    def status(self) -> int:
        return self._head.status if self._head else 0

    @property
    def headers(self) -> dict[bytes, bytes]:
        """Names in lower case."""
        return {name.lower(): value for name, value in self._head.headers} if self._head else {}

    @property
    def complete(self) -> bool:
        assert self._head is not None
        match self._head.framing:
            case Framing.CHUNKED:
                return self._chunks.done
            case Framing.UNTIL_CLOSE:
                return self._ended
        return len(self._received) >= self._head.length

    def take(self, data: bytes) -> None:
        """The next of the body; nothing: the engine has closed the connection."""
        assert self._head is not None
        if not data and self._head.framing is not Framing.UNTIL_CLOSE:
            raise EOFError("it closed in the middle of an answer")
        self._ended = not data
        if self._head.framing is not Framing.CHUNKED:
            self._received += data
            return
        for piece in self._chunks.feed(data)[0]:
            self._received += piece

    @property
    def size(self) -> int:
        """Bytes of the body so far."""
        return len(self._received)

    @property
    def body(self) -> bytes:
        return bytes(self._received)
