"""Connections as state machines: requests, pipelined and in pieces, answers of every framing, ends at any point.

A machine drives one real client connection through a real proxy to a real server, and knows what must come
back: every answer once, in order, whole, and nothing after the answer that ends the connection. Whatever
happened, the connection's slot is free afterwards, and the server has seen no request that was not sent.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.proxy.conftest import House, house
from tests.proxy.peers import Message, Origin, Wire, reply

PLACE = ("api.test", 80)
ENDING = {"/until-close", "/cut", "/silent", "/bad"}  # answers after which the client's connection is over
IDEMPOTENT = {"GET", "PUT"}


def answer(wire: Wire, request: Message) -> bool:
    """Answer as the target says; False when the server's connection is over."""
    kind, _, number = request.target.partition("?")
    body = f"{number}:".encode() + request.body
    match kind:
        case "/chunked":
            size = len(body) // 2
            parts = b"".join(b"%x;x=y\r\n%b\r\n" % (len(p), p) for p in (body[:size], body[size:]) if p)
            head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            wire.send(head + parts + b"0\r\nX-Trailer: y\r\n\r\n")
        case "/hints":
            wire.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
            wire.send(reply(200, body))
        case "/empty":
            wire.send(b"HTTP/1.1 204 No Content\r\nX-Number: %b\r\n\r\n" % number.encode())
        case "/extra":  # a second answer that nobody asked for must not become the next one's
            wire.send(reply(200, body) + reply(200, b"poison"))
        case "/closes":
            wire.send(reply(200, body, "Connection: close"))
            return False
        case "/until-close":
            wire.send(b"HTTP/1.0 200 OK\r\n\r\n" + body)
            return False
        case "/cut":
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + body)
            return False
        case "/silent":
            return False
        case "/bad":
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello")
        case _:
            wire.send(reply(200, body))
    return True


class Server:
    """What the server has seen, over all of its connections."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.lock = threading.Lock()

    def __call__(self, wire: Wire) -> None:
        while True:
            request = wire.message()
            with self.lock:
                self.seen.append((request.method, request.target))
            if not answer(wire, request):
                return


@dataclass
class Sent:
    target: str
    body: bytes
    end: int  # of all bytes of the connection, where this request ends

    @property
    def kind(self) -> str:
        return self.target.partition("?")[0]

    @property
    def expected(self) -> bytes:
        return self.target.partition("?")[2].encode() + b":" + self.body


class Conversation(RuleBasedStateMachine):
    """One connection after the other. What is shared by all examples: the proxy and its pool, and the server."""

    made: House
    server: Server
    composed: set[tuple[str, str]]  # method and target of every request, whether it was sent or not

    @initialize()
    def connect(self) -> None:
        self.wire = self.made.connected("api.test:80")
        self.unsent = b""
        self.written = 0  # bytes that have left
        self.length = 0  # of all that was composed
        self.waiting: list[Sent] = []
        self.open = True  # as far as we know

    @property
    def may_send(self) -> bool:
        """Not behind a request whose answer ends the connection: what comes too late resets it."""
        ending = any(request.kind in ENDING and request.end <= self.written for request in self.waiting)
        return self.open and bool(self.unsent) and not ending

    @rule(
        method=st.sampled_from(["GET", "PUT", "POST"]),
        kind=st.sampled_from(
            ["/length", "/chunked", "/hints", "/empty", "/closes", "/extra", *sorted(ENDING)]
        ),
        body=st.binary(max_size=3000),
        chunked=st.booleans(),
    )
    @precondition(lambda self: self.open and len(self.waiting) < 5)
    def compose(self, method: str, kind: str, body: bytes, *, chunked: bool) -> None:
        """A request that has not been sent yet: it may leave in any pieces, together with others."""
        target = f"{kind}?{len(self.composed)}"
        self.composed.add((method, target))
        body = b"" if method == "GET" else body
        lines = [f"{method} {target} HTTP/1.1", "Host: api.test"]
        payload = body
        if method != "GET":
            lines.append("Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}")
            if chunked:
                chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
                payload = chunk + b"0\r\nX-T: 1\r\n\r\n"
        wire = "\r\n".join([*lines, "", ""]).encode() + payload
        self.unsent += wire
        self.length += len(wire)
        self.waiting.append(Sent(target, body, self.length))

    @rule(size=st.integers(1, 5000))
    @precondition(lambda self: self.may_send)
    def send(self, size: int) -> None:
        self._send(size)

    @rule()
    @precondition(lambda self: self.may_send)
    def send_all(self) -> None:
        self._send(len(self.unsent))

    @rule()
    @precondition(lambda self: self.open and self.waiting and self.written >= self.waiting[0].end)
    def receive(self) -> None:
        """The answer to the oldest request."""
        request = self.waiting.pop(0)
        if request.kind == "/cut":
            head = self.wire.message(head_only=True)
            assert (head.status, head.get("content-length")) == (200, "100000")
            rest = b""
            with contextlib.suppress(ConnectionResetError):
                rest = self.wire.rest()
            assert request.expected.startswith(rest[: len(request.expected)])
            self._over()
            return
        got = self.wire.message()
        while got.status == 103:
            got = self.wire.message()
        if request.kind in {"/silent", "/bad"}:
            assert got.status == 502
        elif request.kind == "/empty":
            assert (got.status, got.get("x-number")) == (
                204,
                request.expected[: -1 - len(request.body)].decode(),
            )
        else:
            assert (got.status, got.body) == (200, request.expected)
        if request.kind in ENDING:
            with contextlib.suppress(ConnectionResetError):
                assert self.wire.rest() == b""
            self._over()
        else:
            assert got.get("connection") is None  # the server has read all of the request: so have we

    @rule(how=st.sampled_from(["close", "reset", "finish"]))
    @precondition(lambda self: self.open and self.written)
    def leave(self, how: str) -> None:
        if how == "finish":
            self.wire.finish()
            with contextlib.suppress(OSError):
                self.wire.rest()
        elif how == "reset":
            self.wire.reset()
        self._over()

    @invariant()
    def nothing_is_served_that_was_not_sent(self) -> None:
        assert set(self.server.seen[-20:]) <= self.composed

    @rule()
    @precondition(lambda self: not self.open)
    def connect_again(self) -> None:
        self.connect()

    def teardown(self) -> None:
        if not hasattr(self, "wire"):
            return
        self.wire.cut()
        for _ in range(200):
            if self.made.proxy.connections == 0:
                break
            time.sleep(0.01)
        assert self.made.proxy.connections == 0
        seen = self.server.seen
        for method, target in set(seen):
            again = method in IDEMPOTENT and target.startswith("/silent?")  # on a pooled connection
            assert seen.count((method, target)) <= 1 + again

    def _send(self, size: int) -> None:
        data, self.unsent = self.unsent[:size], self.unsent[size:]
        self.wire.send(data)
        self.written += len(data)

    def _over(self) -> None:
        self.open = False
        self.wire.cut()


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_conversations(loop: str) -> None:
    server = Server()
    with Origin(server) as origin, house(loop, origins={PLACE: origin}, rules=()) as made:

        class Machine(Conversation):
            pass

        Machine.made, Machine.server, Machine.composed = made, server, set()
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=60,
                stateful_step_count=20,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        assert origin.failures == []
        assert len(server.seen) > 60
