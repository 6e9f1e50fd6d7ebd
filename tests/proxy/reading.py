"""What our own parsers make of bytes that come in pieces, without sockets and without an event loop.

The only file of the corpus and of the fuzzers that knows the parsers' names.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from typing import Any

from moat.proxy.chunked import ChunkedReader
from moat.proxy.head import Framing, MalformedError, RequestHead, ResponseHead
from moat.proxy.limits import Limits
from moat.proxy.message import MessageReader
from moat.proxy.stream import StreamError
from tests.proxy.cases import Accepted, Case, Refused, Unfinished, Verdict

LIMITS = Limits()


class Pieces:
    """A stream that has received everything: the pieces one by one, then the end."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.deadline = 0.0
        self._pieces = [piece for piece in pieces if piece]
        self._pieces.reverse()

    async def receive(self) -> bytes:
        return self._pieces.pop() if self._pieces else b""

    def rest(self) -> bytes:
        return b"".join(reversed(self._pieces))


def read(case: Case, pieces: Iterable[bytes]) -> tuple[Verdict, bytes]:
    """The verdict of `MessageReader` (or of `ChunkedReader` alone) and the bytes that it left over."""
    try:
        return _chunked(pieces) if case.reads == "chunked" else _message(case, pieces)
    except MalformedError as error:
        return Refused(error.code, error.status), b""
    except StreamError:
        return Unfinished(), b""


def _message(case: Case, pieces: Iterable[bytes]) -> tuple[Verdict, bytes]:
    stream = Pieces(pieces)
    reader = MessageReader(stream, LIMITS)
    head: RequestHead | ResponseHead | None
    request = case.reads == "request"
    head = run(reader.request() if request else reader.response(case.method, case.asked))
    if head is None:
        raise StreamError("the client has finished")
    body = reader.body(head, blame="client" if request else "upstream")
    payload = b""
    while piece := run(body.next()):
        payload += piece
    verdict = Accepted(
        head.framing.value,
        head.keep_alive,
        expect=isinstance(head, RequestHead) and head.expect_continue,
        upgrade=head.upgrade.decode(),
        payload=payload,
    )
    return verdict, bytes(reader.buffer) + stream.rest()


def _chunked(pieces: Iterable[bytes]) -> tuple[Verdict, bytes]:
    reader = ChunkedReader(LIMITS, blame="client")
    payload = rest = b""
    for piece in pieces:
        if reader.done:
            rest += piece
            continue
        slices, consumed = reader.feed(piece)
        payload += b"".join(slices)
        rest = piece[consumed:]
    if not reader.done:
        return Unfinished(), b""
    return Accepted(Framing.CHUNKED.value, keep=True, payload=payload), rest


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never has to wait."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits for something")
