"""Streams on each event loop, against a blocking socket on the other side."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterator

import anyio
import anyio.to_thread
import pytest

from moat.proxy.connect import connect
from moat.proxy.stream import (
    BUFFER,
    Stream,
    StreamError,
    StreamTimeoutError,
    Watch,
    open_stream,
)
from moat.proxy.tls import TLSError, verifying_context
from tests.proxy.peers import TestCA, Wire, world

pytestmark = pytest.mark.anyio
in_thread = anyio.to_thread.run_sync


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, Wire]]:
    """A connected TCP pair: ours, and the peer's (blocking)."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    ours.setblocking(False)
    yield ours, Wire(peer)
    ours.close()
    peer.close()


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
async def stream(anyio_backend, sockets: tuple[socket.socket, Wire], watch: Watch) -> AsyncIterator[Stream]:
    made = await open_stream(sockets[0], watch)
    yield made
    await made.aclose()
    await anyio.sleep(0.01)  # uvloop releases the socket in its next turn
    assert sockets[0].fileno() == -1
    assert len(watch) == 0


@pytest.fixture
def peer(sockets: tuple[socket.socket, Wire]) -> Wire:
    return sockets[1]


async def send_for_ever(stream: Stream) -> None:
    while True:
        await stream.send(b"x" * 65536)


async def test_receive_gives_all_that_has_come_and_then_the_end(stream: Stream, peer: Wire) -> None:
    peer.send(b"one")
    assert await stream.receive() == b"one"
    peer.send(b"two")
    peer.send(b"three")
    await anyio.sleep(0.05)
    assert await stream.receive() == b"twothree"
    peer.finish()
    assert await stream.receive() == b""
    assert await stream.receive() == b""
    assert stream.ended
    assert not stream.truncated
    await stream.send(b"still here")  # only their direction has ended
    assert peer.exactly(10) == b"still here"


async def test_small_writes_leave_at_once(stream: Stream) -> None:
    assert stream.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


async def test_what_was_put_back_comes_first(stream: Stream, peer: Wire) -> None:
    peer.send(b"world")
    stream.unread(b"hello ")
    got = await stream.receive()
    while len(got) < 11:
        got += await stream.receive()
    assert got == b"hello world"
    stream.unread(b"again")
    assert await stream.receive() == b"again"


async def test_a_reset_is_an_error_after_the_data_before_it(stream: Stream, peer: Wire) -> None:
    peer.send(b"last words")
    assert await stream.receive() == b"last words"
    peer.reset()
    with pytest.raises(StreamError, match="reset"):
        await stream.receive()
    with pytest.raises(StreamError):
        await send_for_ever(stream)


async def test_an_answer_before_a_reset_is_not_lost(stream: Stream, peer: Wire) -> None:
    """The peer answers and resets while we send, and our write finds out before our read does."""
    await stream.send(b"x" * 1000)
    await anyio.sleep(0.05)
    peer.send(b"the answer")
    peer.close()  # with our bytes unread: the kernel resets
    time.sleep(0.05)  # noqa: ASYNC251 - blocks on purpose: the loop must not have read the answer yet
    try:
        for _ in range(3):
            await stream.send(b"y" * 1000)
    except StreamError:
        pass
    assert await stream.receive() == b"the answer"


async def test_reading_stops_when_nobody_takes_the_data(stream: Stream, peer: Wire) -> None:
    peer.sock.settimeout(0.5)
    sent = 0
    try:
        while sent < 64 * BUFFER:
            sent += await in_thread(peer.sock.send, b"x" * 65536)
    except TimeoutError:
        pass
    assert sent < 64 * BUFFER
    got = 0
    while got < sent:
        got += len(await stream.receive())
    assert got == sent


async def test_sending_waits_for_a_peer_that_does_not_read(stream: Stream, peer: Wire) -> None:
    sent = 0
    with anyio.move_on_after(0.5):
        while True:
            await stream.send(b"x" * 65536)
            sent += 65536
    assert sent < 64 * BUFFER
    stream.abort()


async def test_cancelling_receive_loses_nothing(stream: Stream, peer: Wire) -> None:
    for number in range(20):
        with anyio.move_on_after(0.001):
            await stream.receive()
            raise AssertionError("nothing was sent yet")
        peer.send(b"%02d" % number)
        assert await stream.receive() == b"%02d" % number


async def test_a_deadline_ends_a_receive_and_a_send(sockets, watch: Watch, anyio_backend) -> None:
    stream = await open_stream(sockets[0], watch)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.run)
        stream.deadline = time.monotonic() + 0.2
        with pytest.raises(StreamTimeoutError):
            await stream.receive()
        tasks.cancel_scope.cancel()
    await stream.aclose()
    await anyio.sleep(0.01)
    assert sockets[0].fileno() == -1


async def test_a_deadline_ends_a_send_that_is_stuck(stream: Stream, watch: Watch) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.run)
        stream.deadline = time.monotonic() + 0.3
        with pytest.raises(StreamTimeoutError):
            await send_for_ever(stream)
        tasks.cancel_scope.cancel()


async def test_abort_wakes_the_reader_and_resets_the_peer(stream: Stream, peer: Wire) -> None:
    async with anyio.create_task_group() as tasks:

        async def later() -> None:
            await anyio.sleep(0.1)
            stream.abort("enough")

        tasks.start_soon(later)
        with pytest.raises(StreamError, match="enough"):
            await stream.receive()
    with pytest.raises(ConnectionResetError):
        await in_thread(peer.receive)


async def test_aclose_delivers_what_was_sent(stream: Stream, peer: Wire) -> None:
    await stream.send(b"z" * (2 * BUFFER))
    reading = threading.Thread(target=lambda: (time.sleep(0.2), got.append(peer.rest())))
    got: list[bytes] = []
    reading.start()
    await stream.aclose()
    await in_thread(reading.join)
    assert len(got[0]) == 2 * BUFFER


async def test_aclose_of_a_peer_that_never_reads_is_bounded(stream: Stream, monkeypatch) -> None:
    from moat.proxy import stream_anyio, stream_asyncio

    for module in (stream_anyio, stream_asyncio):
        monkeypatch.setattr(module, "CLOSE_SECONDS", 0.3)
    with anyio.move_on_after(0.3):
        await send_for_ever(stream)
    start = time.monotonic()
    await stream.aclose()
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("at_eof", [True, False])
async def test_a_peer_that_leaves_is_noticed_although_nobody_reads(
    stream: Stream, peer: Wire, watch: Watch, at_eof: bool
) -> None:
    gone = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.run)
        stream.when_gone(gone.set, at_eof=at_eof)
        await anyio.sleep(0.3)
        assert not gone.is_set()
        if at_eof:
            peer.finish()
        else:
            peer.reset()
        with anyio.fail_after(2):
            await gone.wait()
        tasks.cancel_scope.cancel()


async def test_a_peer_that_only_finished_may_still_count_as_there(
    stream: Stream, peer: Wire, watch: Watch
) -> None:
    gone = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.run)
        stream.when_gone(gone.set, at_eof=False)
        peer.finish()
        await anyio.sleep(0.6)
        assert not gone.is_set()
        tasks.cancel_scope.cancel()


async def test_connect_says_what_went_wrong(anyio_backend, watch: Watch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        stream = await connect(address, watch, timeout=2)
        await stream.aclose()
    with pytest.raises(StreamError, match="connection refused"):
        await connect(address, watch, timeout=2)
    assert len(watch) == 0
    await anyio.sleep(0.01)


# --- TLS -----------------------------------------------------------------------------------------


def server(wire: Wire, *names: str, tls: ssl.TLSVersion | None = None) -> Wire:
    return wire.tls(world().context(*names, tls=tls), None, server=True)


@pytest.fixture
def trust() -> ssl.SSLContext:
    return verifying_context(extra_roots=world().pem)


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.mark.parametrize("version", VERSIONS)
async def test_tls_carries_bytes_both_ways(
    stream: Stream, peer: Wire, trust: ssl.SSLContext, version
) -> None:
    def other_side() -> None:
        with server(peer, "a.test", tls=version) as wire:
            wire.send(b"first, together with the handshake")
            size = 0
            while size < 3_000_000:
                data = wire.receive()
                size += len(data)
                wire.send(data)
            time.sleep(0.2)

    running = threading.Thread(target=other_side)
    running.start()
    await stream.start_tls(trust, server_side=False, server_hostname="a.test")
    assert (await stream.receive()).startswith(b"first")
    got = 0
    async with anyio.create_task_group() as tasks:

        async def up() -> None:
            for _ in range(30):
                await stream.send(b"u" * 100_000)

        tasks.start_soon(up)
        while got < 3_000_000:
            got += len(await stream.receive())
    assert await stream.receive() == b""
    assert not stream.truncated
    await in_thread(running.join)


async def test_tls_over_bytes_that_were_already_read(stream: Stream, peer: Wire) -> None:
    """As after CONNECT: the ClientHello came in the same packet as the head."""

    def other_side() -> bytes:
        context = ssl.create_default_context(cadata=world().pem.decode())
        with peer.tls(context, "a.test") as wire:
            wire.send(b"hello")
            return wire.exactly(3)

    async with anyio.create_task_group() as tasks:
        answers: list[bytes] = []

        async def run() -> None:
            answers.append(await in_thread(other_side))

        tasks.start_soon(run)
        stream.unread(await stream.receive())
        await stream.start_tls(world().context("a.test"), server_side=True)
        assert await stream.receive() == b"hello"
        await stream.send(b"hey")
    assert answers == [b"hey"]


@pytest.mark.parametrize("polite", [True, False])
async def test_the_end_of_tls_is_told_from_a_cut(stream: Stream, peer: Wire, trust, polite: bool) -> None:
    def other_side() -> None:
        wire = server(peer, "a.test")
        wire.send(b"data")
        wire.close() if polite else wire.cut()

    running = threading.Thread(target=other_side)
    running.start()
    await stream.start_tls(trust, server_side=False, server_hostname="a.test")
    assert await stream.receive() == b"data"
    assert await stream.receive() == b""
    assert stream.truncated is not polite
    await in_thread(running.join)


async def test_we_finish_and_go_on_reading(stream: Stream, peer: Wire, trust) -> None:
    """close_notify and FIN from us, while data of the peer is on its way, and more follows."""

    def other_side() -> None:
        wire = server(peer, "a.test")
        wire.send(b"before ")
        time.sleep(0.2)
        assert wire.rest() == b"ours"
        wire.send(b"after")
        wire.close()

    running = threading.Thread(target=other_side)
    running.start()
    await stream.start_tls(trust, server_side=False, server_hostname="a.test")
    await stream.send(b"ours")
    await anyio.sleep(0.1)  # "before" has arrived and nobody has read it
    await stream.send_eof()
    got = b""
    while data := await stream.receive():
        got += data
    assert got == b"before after"
    await in_thread(running.join)


@pytest.mark.parametrize(
    ("name", "own", "reason"),
    [("b.test", True, "hostname mismatch"), ("a.test", False, "unable to get local issuer certificate")],
)
async def test_a_certificate_that_is_not_accepted(
    stream: Stream, peer: Wire, name: str, own: bool, reason: str
) -> None:
    def other_side() -> str:
        try:
            server(peer, "a.test")
        except ssl.SSLError as error:
            return error.reason or ""
        return "accepted"

    trust = verifying_context(extra_roots=world().pem if own else TestCA().pem)
    async with anyio.create_task_group() as tasks:
        alerts: list[str] = []

        async def run() -> None:
            alerts.append(await in_thread(other_side))

        tasks.start_soon(run)
        with pytest.raises(TLSError, match=f"(?i){reason}") as caught:
            await stream.start_tls(trust, server_side=False, server_hostname=name)
    assert caught.value.verification
    assert "ALERT" in alerts[0]  # the peer was told


async def test_idle_tls_stays_quiet_through_tickets_and_not_through_data(
    stream: Stream, peer: Wire, trust
) -> None:
    go, done = threading.Event(), threading.Event()

    def other_side() -> None:
        wire = server(peer, "a.test")
        wire.send(b"x")  # Python's server sends its session tickets with or before this
        go.wait(5)
        wire.send(b"unasked")
        done.wait(5)
        wire.close()

    running = threading.Thread(target=other_side)
    running.start()
    await stream.start_tls(trust, server_side=False, server_hostname="a.test")
    assert await stream.receive() == b"x"
    await anyio.sleep(0.1)
    assert stream.quiet()
    go.set()
    await anyio.sleep(0.2)
    assert not stream.quiet()
    done.set()
    await in_thread(running.join)


async def test_a_broken_record_is_an_error(stream: Stream, peer: Wire, trust) -> None:
    def other_side() -> None:
        raw = socket.socket(fileno=socket.dup(peer.sock.fileno()))
        wire = server(peer, "a.test")
        wire.send(b"good")
        time.sleep(0.2)
        raw.sendall(b"\x17\x03\x03\x00\x20" + b"\xff" * 32)
        time.sleep(0.2)
        raw.close()
        wire.cut()

    running = threading.Thread(target=other_side)
    running.start()
    await stream.start_tls(trust, server_side=False, server_hostname="a.test")
    assert await stream.receive() == b"good"
    with pytest.raises(StreamError):
        await stream.receive()
    await in_thread(running.join)
