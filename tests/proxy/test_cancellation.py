"""Cancelled at every await, a connection leaves nothing behind.

Each story is told again and again with real peers: the first time its connection is cancelled when it waits for
the first time, then for the second, and so on, until the story reaches its end. Waiting is counted in the
connection's task and in all tasks that it starts. Afterwards the slot is free, and there are as many file
descriptors, tasks and watched streams as before.

Seen failing: without `stream.abort()` in `Proxy._connection`, in `Upstream.acquire` and in `Exchange._carry`;
without `sock.close()` for what is not an error in `stream.connect`; without `abort()` of the winner of a race;
without giving the slot back.
"""

from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from moat.authority import Authority
from moat.proxy import Limits, Policy, Proxy, RunCA, Upstream, UpstreamOptions
from moat.proxy.server import Serve
from tests.proxy.conftest import RULE, SECRET, Credentials, tls_origin
from tests.proxy.peers import Origin, Wire, client_context, echo, world
from tests.proxy.test_exchange import API, get, post
from tests.proxy.test_upstream import HTTPProxy

pytestmark = [
    pytest.mark.anyio,
    # The standard library loses a socket that is reset while a blocking peer of ours begins with TLS.
    pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning"),
]
CONNECT = b"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n\r\n"
MOST = 300  # awaits of one story; they have between 3 and 60


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


class Awaits:
    """Counts how often the tasks of one connection wait, and cancels it the `at`-th time."""

    scope: anyio.CancelScope

    def __init__(self, uncounted: Callable[[], Any]) -> None:
        self.uncounted = uncounted  # makes task groups that are not the connection's
        self.at = self.count = 0

    def arm(self, at: int) -> None:
        self.at, self.count, self.scope = at, 0, anyio.CancelScope()

    async def watched(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return await _Watched(coroutine, self)

    def waits(self) -> None:
        self.count += 1
        if self.count == self.at:
            self.scope.cancel()


@dataclass
class _Watched:
    coroutine: Coroutine[Any, Any, Any]
    awaits: Awaits

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self.coroutine.__await__()
        step: Callable[[], Any] = partial(steps.send, None)
        while True:
            try:
                waits_for = step()
            except StopIteration as stop:
                return stop.value
            self.awaits.waits()
            try:
                result = yield waits_for
            except BaseException as error:
                step = partial(steps.throw, error)
            else:
                step = partial(steps.send, result)


@pytest.fixture
def awaits(monkeypatch: pytest.MonkeyPatch) -> Awaits:
    """Counts in child tasks, too."""
    create = anyio.create_task_group
    counter = Awaits(create)

    def create_task_group() -> Any:
        group = create()
        start_soon = group.start_soon

        def start(function: Any, *arguments: Any) -> None:
            async def child() -> None:
                await counter.watched(function(*arguments))

            start_soon(child)

        group.start_soon = start
        return group

    monkeypatch.setattr(anyio, "create_task_group", create_task_group)
    return counter


# --- stories: what a client does, and what is there for it -----------------------------------------


@dataclass(frozen=True)
class Story:
    client: Callable[[Wire, Any], None]
    origin: Callable[[Wire], None] = echo
    way: str = "direct"  # or: race, proxy, opaque

    def options(self, origin: Origin, between: Origin) -> UpstreamOptions:
        """The way out; `between` is an HTTP proxy."""
        match self.way:
            case "race":
                return UpstreamOptions(connect_to={API: ("two.test", origin.port)})
            case "proxy":
                return UpstreamOptions(proxy=f"http://127.0.0.1:{between.port}")
            case "opaque":
                return UpstreamOptions(host_ports=frozenset({origin.port}))
        return UpstreamOptions(connect_to={API: origin.address})

    def serve(self, origin: Origin) -> Serve:
        if self.way == "opaque":
            return lambda connection, _sock: connection.captured(Authority("moat-host", origin.port))
        return lambda connection, _sock: connection.explicit()


def tunnel(wire: Wire, trust: Any) -> Wire:
    wire.send(CONNECT)
    assert wire.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200")
    return wire.tls(trust, "api.test")


def fetches(wire: Wire, trust: Any) -> None:
    inside = tunnel(wire, trust)
    for _ in range(2):
        inside.send(get())
        assert inside.message().status == 200


def uploads(wire: Wire, trust: Any) -> None:
    inside = tunnel(wire, trust)
    inside.send(post(400_000))
    for _ in range(8):
        inside.send(b"x" * 50_000)
    assert inside.message().status == 200


def switches(wire: Wire, trust: Any) -> None:
    """To a protocol that nobody looks into."""
    inside = tunnel(wire, trust)
    inside.send(get("/", "Connection: Upgrade", "Upgrade: opaque"))
    inside.until(b"\r\n\r\n")
    inside.send(b"ping")
    assert inside.exactly(4) == b"pong"
    inside.close()


def sends_frames(wire: Wire, trust: Any) -> None:
    """To WebSocket, whose frames are read when a credential went up."""
    inside = tunnel(wire, trust)
    inside.send(get("/", "Connection: Upgrade", "Upgrade: websocket"))
    inside.until(b"\r\n\r\n")
    inside.send(b"\x81\x84\0\0\0\0ping")  # text, masked with zeros
    assert inside.exactly(6) == b"\x81\x04pong"
    inside.close()


def is_refused(wire: Wire, trust: Any) -> None:
    inside = tunnel(wire, trust)
    inside.send(get(host="other.test"))
    assert inside.message().status == 403


def speaks_nonsense(wire: Wire, trust: Any) -> None:
    wire.send(b"EHLO here\r\n")
    assert wire.message().status == 400


def talks_past_us(wire: Wire, trust: Any) -> None:
    inside = wire.tls(client_context(world().pem), "api.test")
    inside.send(get())
    assert inside.message().status == 200
    inside.close()


def agrees_to_switch(wire: Wire) -> None:
    protocol = wire.message().get("upgrade") or ""
    wire.send(f"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n".encode())
    wire.exactly(10 if protocol == "websocket" else 4)
    wire.send(b"\x81\x04pong" if protocol == "websocket" else b"pong")


def streams(wire: Wire) -> None:
    wire.message()
    wire.send(b"HTTP/1.1 103 X\r\n\r\nHTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(3):
        wire.send(b"5\r\nhello\r\n")
    wire.send(b"0\r\nX: y\r\n\r\n")
    wire.rest()


def reads_a_stream(wire: Wire, trust: Any) -> None:
    inside = tunnel(wire, trust)
    inside.send(get())
    inside.until(b"\r\n\r\n")
    assert inside.message().body == b"hello" * 3


STORIES = {
    "fetches": Story(fetches),
    "uploads": Story(uploads),
    "reads a stream": Story(reads_a_stream, streams),
    "switches protocols": Story(switches, agrees_to_switch),
    "sends frames": Story(sends_frames, agrees_to_switch),
    "is refused": Story(is_refused),
    "speaks nonsense": Story(speaks_nonsense),
    "races": Story(fetches, way="race"),
    "goes through the user's proxy": Story(fetches, way="proxy"),
    "talks past us": Story(talks_past_us, way="opaque"),
}


async def resolver(host: str, port: int) -> list[str]:
    await anyio.lowlevel.checkpoint()
    if host == "api.test":
        raise socket.gaierror(-2, "Name or service not known")  # only the user's proxy knows it
    return ["::1", "127.0.0.1"] if host == "two.test" else [host]


@pytest.mark.parametrize("story", STORIES)
async def test_nothing_is_left(story: str, awaits: Awaits, anyio_backend: str) -> None:
    told, limits = STORIES[story], replace(Limits(), dial_stagger=0.01)
    ca = RunCA.generate("run_test")
    trust = client_context(ca.certificate_pem)
    with tls_origin(told.origin) as origin, Origin(HTTPProxy(origin)) as between:
        options = replace(told.options(origin, between), extra_roots=world().pem)
        upstream = Upstream(options, limits=limits, resolver=resolver)
        await upstream.prepare()
        ended = []
        proxy = Proxy(policy=Policy(host_ports=options.host_ports), ca=ca, rules=(RULE,), credentials=Credentials({"demo": SECRET}),
                      upstream=upstream, on_event=ended.append, limits=limits)  # fmt: skip
        before: tuple[int, int] | None = None
        for at in range(MOST):  # 0: to its end
            awaits.arm(at)
            failures = await _once(proxy, awaits, told.serve(origin), partial(told.client, trust=trust))
            assert proxy.connections == 0
            assert proxy._slots.value == limits.connections
            await upstream.aclose()
            left = await _settled(upstream, before)
            before = before or left
            assert no_more(left, before), f"cancelled at await {at}: {left}, before {before}"
            assert at or not failures, failures
            if at and awaits.count < at:
                break
        assert 3 <= at < MOST - 1
        assert ended


async def _once(proxy: Proxy, awaits: Awaits, serve: Serve, play: Callable[[Wire], None]) -> list[str]:
    """The story, cancelled where `awaits` says; what the client met."""
    ours, theirs = _pair()
    failures: list[str] = []

    def client() -> None:
        wire = Wire(theirs)
        try:
            play(wire)
        except (OSError, AssertionError, ValueError) as error:  # it was cut off
            failures.append(repr(error))
        finally:
            wire.cut()

    thread = threading.Thread(target=client)
    thread.start()

    async def watch() -> None:
        with anyio.CancelScope() as watching:
            stop.append(watching)
            await proxy._setup.upstream.watch.run()

    stop: list[anyio.CancelScope] = []
    await proxy._slots.acquire()
    async with awaits.uncounted() as tasks:
        tasks.start_soon(watch)
        with awaits.scope:
            await awaits.watched(proxy._connection(ours, serve))
        await anyio.to_thread.run_sync(thread.join)
        stop[0].cancel()
    return failures


def _pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    ours.setblocking(False)
    return ours, theirs


def no_more(left: tuple[int, int], before: tuple[int, int]) -> bool:
    return left[0] <= before[0] and left[1] <= before[1]


async def _settled(upstream: Upstream, before: tuple[int, int] | None) -> tuple[int, int]:
    """Open file descriptors and running tasks, once nothing of the story moves any more."""
    for turn in range(100):
        await anyio.sleep(0.005)
        gc.collect(2 if turn % 20 == 19 else 0)
        left = len(os.listdir("/proc/self/fd")), len(anyio.get_running_tasks())
        if len(upstream.watch) == 0 and (before is None or no_more(left, before)):
            break
    assert len(upstream.watch) == 0
    return left
