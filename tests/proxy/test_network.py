"""What real networks and real servers do, over the real proxy with raw peers, and the bounds that hold then.

Framing, early answers, half-closes, streams, upgrades and the pool are in `test_exchange`; names, addresses and
the user's proxy in `test_upstream` and `test_race`; slow heads, handshakes and certificates in `test_refusals`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from moat.proxy import Limits, Policy, Proxy, RunCA, Upstream, UpstreamOptions
from moat.proxy.budget import Budget
from moat.proxy.download import INTERIM_RESPONSES
from tests.proxy.conftest import HouseMaker, tls_origin
from tests.proxy.h2peers import Client
from tests.proxy.peers import PATIENCE, Origin, Wire, echo, reply, world
from tests.proxy.test_exchange import API, PLAIN, get, post
from tests.proxy.test_server import open_files

# --- servers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("measured", [True, False])
def test_a_server_may_finish_its_direction_before_it_has_read_the_request(
    make: HouseMaker, measured: bool
) -> None:
    """It answers, says that nothing follows, and goes on reading: the client has its answer.

    Seen to fail, where the end of the direction is that of the body, with an EOF that is overlooked.
    """
    read: list[int] = []

    def script(wire: Wire) -> None:
        wire.message(head_only=True)
        whole = reply(200, b"enough", "Connection: close")
        wire.send(whole if measured else b"HTTP/1.1 200 OK\r\n\r\nenough")
        wire.finish()
        read.append(len(wire.rest()))

    with Origin(script) as origin, make(origins={PLAIN: origin}, rules=()) as house, house.connect() as wire:
        wire.send(post(1_000_000, path="http://api.test/") + b"x" * 1000)
        assert wire.message().body == b"enough"


def test_a_server_that_resets_instead_of_answering_is_a_502(make: HouseMaker) -> None:
    def script(wire: Wire) -> None:
        wire.message()
        wire.reset()

    with tls_origin(script) as origin, make(origins={API: origin}) as house, house.tunnel() as wire:
        wire.send(post(2) + b"{}")
        answer = wire.message()
        assert (answer.status, answer.get("x-moat-error")) == (502, "upstream")
        assert "api.test" in answer.json()["error"]


def test_a_server_that_drops_every_request_is_asked_twice_and_no_more(make: HouseMaker) -> None:
    """A pooled connection is given a second chance on a fresh one; a fresh one is not."""
    asked: list[str] = []

    def script(wire: Wire) -> None:
        asked.append(wire.message().target)
        if asked == ["/first"]:
            wire.send(reply(200, b"ok"))
            asked.append(wire.message().target)

    with tls_origin(script) as origin, make(origins={API: origin}) as house, house.tunnel() as wire:
        wire.send(get("/first"))
        assert wire.message().status == 200
        wire.send(get("/second"))
        assert wire.message().status == 502
    assert asked == ["/first", "/second", "/second"]


def test_the_second_chance_is_a_fresh_connection(make: HouseMaker) -> None:
    """All that are pooled went stale at once, as when a load balancer restarts.

    Seen to fail without `fresh` in `Exchange._converse`.
    """
    both, numbers = threading.Barrier(2), itertools.count()

    def script(wire: Wire) -> None:
        pooled = next(numbers) < 2
        wire.message()
        if pooled:
            both.wait(PATIENCE)
        wire.send(reply(200, b"ok"))
        if pooled:
            wire.message()  # and says nothing to that

    with tls_origin(script) as origin, make(origins={API: origin}) as house:
        with house.tunnel() as one, house.tunnel() as other:
            for wire in (one, other):
                wire.send(get())
            for wire in (one, other):
                assert wire.message().status == 200
            one.send(get())
            assert one.message().status == 200
        assert origin.accepted == 3


def test_a_server_that_closes_after_each_answer_costs_the_client_nothing(make: HouseMaker) -> None:
    with tls_origin(echo) as origin, make(origins={API: origin}) as house, house.tunnel() as wire:
        for _ in range(3):
            wire.send(get("/close"))
            answer = wire.message()
            assert (answer.status, answer.get("connection")) == (200, None)
        assert origin.accepted == 3


@pytest.mark.parametrize("chunked", [False, True])
def test_a_server_that_says_close_and_stays_is_asked_nothing_more(make: HouseMaker, chunked: bool) -> None:
    """Seen to fail with `Download.run` giving `True` at either of its two ends."""

    def script(wire: Wire) -> None:
        wire.message()
        framed = b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
        wire.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n")
        wire.send(framed if chunked else b"Content-Length: 2\r\n\r\nok")
        with contextlib.suppress(OSError):
            assert wire.rest() == b""

    with tls_origin(script) as origin, make(origins={API: origin}) as house, house.tunnel() as wire:
        for _ in range(2):
            wire.send(get())
            assert wire.message().body == b"ok"
        assert origin.accepted == 2


@pytest.mark.parametrize("path", ["/", "/chunked"])
def test_a_client_that_says_close_is_told_so_and_closed(make: HouseMaker, path: str) -> None:
    """Seen to fail with `keep` without the request's `keep_alive`, in both places."""

    def script(wire: Wire) -> None:
        chunked = wire.message().target == "/chunked"
        framed = b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
        wire.send(b"HTTP/1.1 200 OK\r\n" + (framed if chunked else b"Content-Length: 2\r\n\r\nok"))

    with tls_origin(script) as origin, make(origins={API: origin}) as house, house.tunnel() as wire:
        wire.send(get(path, "Connection: close"))
        answer = wire.message()
        assert (answer.body, answer.get("connection")) == (b"ok", "close")
        assert wire.rest() == b""


@pytest.mark.parametrize("count", [INTERIM_RESPONSES, INTERIM_RESPONSES - 1])
def test_interim_answers_are_bounded(make: HouseMaker, count: int) -> None:
    def script(wire: Wire) -> None:
        wire.message()
        wire.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" * count + reply(200, b"at last"))

    with tls_origin(script) as origin, make(origins={API: origin}) as house, house.tunnel() as wire:
        wire.send(get())
        for _ in range(count):
            assert wire.until(b"\r\n\r\n").startswith(b"HTTP/1.1 103")
        assert wire.message().status == (200 if count < INTERIM_RESPONSES else 502)


def test_who_reads_no_interim_answers_is_let_go(make: HouseMaker, tmp_path: Path) -> None:
    """Seen failing without a deadline for them: a connection of the sandbox, and one of its server's, for good."""
    ended = threading.Event()

    def script(wire: Wire) -> None:
        wire.message()
        with contextlib.suppress(OSError):
            for _ in range(INTERIM_RESPONSES - 1):
                wire.send(b"HTTP/1.1 103 Early Hints\r\nX: %b\r\n\r\n" % (b"x" * 60_000))
            wire.rest()
        ended.set()

    listener = socket.socket(socket.AF_UNIX)  # whose buffers are small
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    limits = replace(Limits(), body_idle_timeout=0.5)
    with tls_origin(script) as origin, make(origins={API: origin}, limits=limits, listener=listener) as house:
        with house.tunnel() as wire:
            wire.send(get())
            assert ended.wait(10)
            assert house.event().error == "client went away"


def test_ten_thousand_bytes_of_headers_pass_both_ways(make: HouseMaker) -> None:
    large = "x" * 10_000
    seen: list[str | None] = []

    def script(wire: Wire) -> None:
        seen.append(wire.message().get("x-large"))
        wire.send(reply(200, b"ok", f"X-Large: {large}"))

    with tls_origin(script) as origin, make(origins={API: origin}) as house, house.tunnel() as wire:
        wire.send(get("/", f"X-Large: {large}"))
        assert wire.message().get("x-large") == large
    assert seen == [large]


# --- time ----------------------------------------------------------------------------------------


def test_a_response_head_that_drips_is_a_504(make: HouseMaker) -> None:
    """Each byte comes soon enough; all of them do not. Fails when `response` extends the deadline."""

    def script(wire: Wire) -> None:
        wire.message()
        for byte in b"HTTP/1.1 200 OK\r\nX: " + b"y" * 500:
            wire.send(bytes([byte]))
            time.sleep(0.05)

    limits = replace(Limits(), response_head_timeout=0.6)
    with (
        tls_origin(script) as origin,
        make(origins={API: origin}, limits=limits) as house,
        house.tunnel() as wire,
    ):
        started = time.monotonic()
        wire.send(get())
        assert wire.message().status == 504
        assert time.monotonic() - started < 5


def test_a_client_that_stalls_in_its_body_lets_the_server_go(make: HouseMaker) -> None:
    gone = threading.Event()

    def script(wire: Wire) -> None:
        wire.message(head_only=True)
        with contextlib.suppress(OSError):
            wire.rest()
        gone.set()

    limits = replace(Limits(), body_idle_timeout=0.5)
    with (
        tls_origin(script) as origin,
        make(origins={API: origin}, limits=limits) as house,
        house.tunnel() as wire,
    ):
        wire.send(post(1000) + b"x")
        assert gone.wait(5)
        assert house.event().error
        assert house.proxy.connections == 0


def test_a_client_that_is_silent_between_requests_is_let_go(make: HouseMaker) -> None:
    """Before the test's own patience ends, which is a third of the usual time for it."""
    limits = replace(Limits(), client_idle_timeout=1.5)  # busy machines took 0.5 s for the request
    with (
        tls_origin(echo) as origin,
        make(origins={API: origin}, limits=limits) as house,
        house.tunnel() as wire,
    ):
        wire.send(get())
        assert wire.message().status == 200
        started = time.monotonic()
        with contextlib.suppress(OSError):
            assert wire.rest() == b""  # a TimeoutError is an OSError, and takes PATIENCE
        assert 0.3 < time.monotonic() - started < PATIENCE


@pytest.mark.parametrize("bound", ["close_timeout", "linger"])
def test_a_client_that_goes_on_after_its_refusal_is_let_go(make: HouseMaker, bound: str) -> None:
    """By time when it only stays, by size when it sends: both hold a slot that others wait for."""
    only = {"close_timeout": 0.4} if bound == "close_timeout" else {"close_timeout": 60.0, "linger": 300_000}
    limits = replace(Limits(), **only)
    with make(limits=limits) as house, house.connect() as wire:
        wire.send(b"GET /not-a-url HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert wire.message().status == 400
        sent = 0
        started = time.monotonic()
        with contextlib.suppress(OSError):
            while house.proxy.connections and time.monotonic() - started < PATIENCE:
                if bound == "linger":
                    wire.send(b"x" * 65536)
                    sent += 65536
                else:
                    time.sleep(0.05)
        took = time.monotonic() - started
        assert took < PATIENCE
        assert sent > 300_000 if bound == "linger" else took > 0.2


# --- certificates and clocks ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "reason"), [((-30, -1), "certificate has expired"), ((1, 30), "certificate is not yet valid")]
)
def test_a_certificate_out_of_its_time_is_named(make: HouseMaker, days: tuple[int, int], reason: str) -> None:
    """Expired, or a clock that is behind: the client is told which host and why, and not to try again."""

    def nobody(wire: Wire) -> None:
        raise AssertionError("a request was sent")

    context = world().context("api.test", days=days)
    with Origin(nobody, context=context) as origin, make(origins={API: origin}) as house:
        with house.tunnel() as wire:
            wire.send(get())
            answer = wire.message()
            assert (answer.status, answer.get("x-moat-error")) == (502, "certificate")
            assert f"the certificate of api.test is not accepted: {reason}" in answer.json()["error"]
            assert answer.get("x-should-retry") == "false"
        assert origin.failures == []


# --- the user's proxy ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: x\r\n\r\n", b"SSH-2.0-x\r\n"]
)
def test_a_users_proxy_that_fails_is_named(make: HouseMaker, answer: bytes) -> None:
    def script(wire: Wire) -> None:
        wire.message(head_only=True)
        wire.send(answer)

    async def resolver(host: str, port: int) -> list[str]:
        return ["93.184.216.34"] if host == "api.test" else ["127.0.0.1"]

    with Origin(script) as proxied:
        options = UpstreamOptions(proxy=f"http://127.0.0.1:{proxied.port}")
        with make(options=options, resolver=resolver) as house, house.tunnel() as wire:
            wire.send(get())
            told = wire.message()
            assert (told.status, told.get("x-moat-error")) == (502, "proxy")


# --- resources -------------------------------------------------------------------------------------


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[list[int]]:
    """Take every file descriptor that this process may have; closing one of the list gives one back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + 40, hard))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        yield taken
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_dial_without_a_descriptor_left_is_a_502(make: HouseMaker, origin: Origin) -> None:
    async def resolver(host: str, port: int) -> list[str]:
        return [host]

    with make(origins={API: origin}, resolver=resolver) as house:
        with house.tunnel() as wire:
            with no_descriptor_left():
                wire.send(get())
                answer = wire.message()
            assert (answer.status, answer.get("x-moat-error")) == (502, "connect")
            assert "too many open files" in answer.json()["error"]
        with house.tunnel() as wire:
            wire.send(get())
            assert wire.message().status == 200


def test_connections_wait_while_no_descriptor_is_left(make: HouseMaker, origin: Origin) -> None:
    with make(origins={API: origin}) as house:
        sock = socket.socket()
        with no_descriptor_left():
            sock.connect(house.address)
            wire = Wire(sock)
            wire.send(b"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n\r\n")
            time.sleep(0.3)
        assert wire.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200")
        wire.close()


STREAMS = 2000


def test_two_thousand_streams_at_a_time() -> None:
    """Nobody gets the second event before all have seen the first; memory per stream is bounded.

    Proxy, server and clients share one loop: a thread for each stream would be a test of threads.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        asyncio.run(_two_thousand_streams())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def _two_thousand_streams() -> None:
    listener, events = socket.create_server(("127.0.0.1", 0), backlog=STREAMS), []
    arrived: list[int] = []
    all_here = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"9\r\ndata: 1\n\n\r\n")
        await all_here.wait()
        writer.write(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")
        writer.close()

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"GET http://api.test/ HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n\r\n")
        await reader.readuntil(b"data: 1\n\n")
        arrived.append(number)
        if len(arrived) == STREAMS:
            all_here.set()
        assert (await reader.read()).endswith(b"data: 2\n\n\r\n0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=STREAMS)
    limits = replace(Limits(), connections=STREAMS)
    options = UpstreamOptions(connect_to={PLAIN: server.sockets[0].getsockname()})
    proxy = Proxy(policy=Policy(), ca=RunCA.generate("run_test"), on_event=events.append, limits=limits,
                  upstream=Upstream(options, limits=limits))  # fmt: skip
    before = _resident()
    async with asyncio.timeout(100), anyio.create_task_group() as tasks:
        await tasks.start(proxy.serve, listener)
        await asyncio.gather(*map(client, range(STREAMS)))
        grown = _resident() - before
        await proxy.aclose(5.0)
    server.close()
    assert [event.status for event in events] == [200] * STREAMS
    # Both ends of the test's own included.
    assert grown / STREAMS < 60_000, f"{grown / STREAMS:.0f} bytes per stream"


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.parametrize("protocol", ["http1", "h2"])
def test_a_clock_that_jumps_ends_nothing(
    make: HouseMaker, origin: Origin, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    """The host wakes up, or its clock is put right: durations, the pool and rates do not go by it.

    Here it jumps whenever somebody looks. Seen to fail with durations that go by it.
    """
    jumps = itertools.cycle([0.0, 86_400.0, -86_400.0, 400 * 86_400.0])
    looked, clock = 0, time.time

    def jumping() -> float:
        nonlocal looked
        looked += 1
        return clock() + next(jumps)

    for name, module in tuple(sys.modules.items()):
        if name.startswith("moat.proxy"):
            for word in [word for word, value in vars(module).items() if value is clock]:
                monkeypatch.setattr(module, word, jumping)
    budgets = [Budget(requests_per_minute=100)]
    with make(origins={API: origin}, budgets=budgets) as house, contextlib.ExitStack() as stack:
        client = stack.enter_context(Client.through(house) if protocol == "h2" else house.tunnel())

        def ask() -> int:
            if isinstance(client, Client):
                return client.get().status
            client.send(get())
            return client.message().status

        for _ in range(8):
            assert ask() == 200
            assert 0 <= house.event().duration < 10
        assert looked >= 8
        assert origin.accepted <= 2  # HTTP/2 was asked for first; the pooled connection was good all the time
