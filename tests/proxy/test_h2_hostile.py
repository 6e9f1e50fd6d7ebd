"""HTTP/2 clients that flood, starve and reset: what they cost is bounded, and they are told."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from h2.events import SettingsAcknowledged
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    ExtensionFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from moat.proxy import Limits
from moat.proxy.h2_link import _Machine
from tests.proxy.conftest import HouseMaker, tls_origin
from tests.proxy.h2peers import Client
from tests.proxy.peers import Origin, Wire, reply

API = ("api.test", 443)
LIMITS = Limits()
SIZE = 12_000_000


def ping(_: Client) -> list[Frame]:
    return [PingFrame(0, opaque_data=b"12345678")]


def settings(_: Client) -> list[Frame]:
    return [SettingsFrame(0, settings={4: 70_000})]


def priority(_: Client) -> list[Frame]:
    return [PriorityFrame(99, depends_on=0, stream_weight=1)]


def unknown(_: Client) -> list[Frame]:
    return [ExtensionFrame(0xBA, stream_id=0, flag_byte=0, body=b"")]


def window(_: Client) -> list[Frame]:
    return [WindowUpdateFrame(0, window_increment=1)]


def goaway(_: Client) -> list[Frame]:
    return [GoAwayFrame(0, last_stream_id=0, additional_data=b"x" * 300)]


def empty_data(client: Client) -> list[Frame]:
    if not client.answers:
        client.ask(method="POST", body=b"", end=False)
    return [DataFrame(1, data=b"")]


def rapid_reset(client: Client) -> list[Frame]:
    """CVE-2023-44487."""
    headers = get_on(client, client.h2.get_next_available_stream_id())
    client.h2.highest_outbound_stream_id = headers.stream_id
    return [headers, RstStreamFrame(headers.stream_id, error_code=8)]


def made_you_reset(client: Client) -> list[Frame]:
    """CVE-2025-8671: the server resets, because the body is longer than its head said."""
    stream = client.h2.get_next_available_stream_id()
    head = get_on(client, stream, extra=(("content-length", "1"),))
    head.flags.discard("END_STREAM")
    client.h2.highest_outbound_stream_id = stream
    return [head, DataFrame(stream, data=b"xx")]


def ping_ack(_: Client) -> list[Frame]:
    return [PingFrame(0, opaque_data=b"12345678", flags=["ACK"])]


def settings_ack(_: Client) -> list[Frame]:
    return [SettingsFrame(0, flags=["ACK"])]


def after_its_end(client: Client) -> list[Frame]:
    """Frames of a stream that is over, which the library answers or drops by itself."""
    if not client.answers:
        client.get()
    return [
        DataFrame(1, data=b"x"),
        WindowUpdateFrame(1, window_increment=1),
        RstStreamFrame(1, error_code=1),
    ]


def too_many(client: Client) -> list[Frame]:
    stream = client.h2.get_next_available_stream_id()
    client.h2.highest_outbound_stream_id = stream
    return [get_on(client, stream)]


FLOODS = [
    ping, ping_ack, settings, settings_ack, priority, unknown, window, goaway, empty_data, after_its_end,
    rapid_reset, made_you_reset,
]  # fmt: skip


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_of_frames_ends_the_connection(
    make: HouseMaker, origin: Origin, flood: Callable[[Client], list[Frame]]
) -> None:
    """Seen failing (the flood goes through) with `Link.spend` doing nothing, and without it in `_malformed`."""
    limits = replace(LIMITS, h2_allowance=100, h2_allowance_per_second=1)
    with make(origins={API: origin}, limits=limits) as house:
        with Client.through(house) as client:
            with contextlib.suppress(OSError):
                for _ in range(300):
                    client.frame(*flood(client))
            goaway = client.drained()
            assert goaway is None or goaway.error_code == 11  # ENHANCE_YOUR_CALM; a reset may overtake it
        while (event := house.event()).denial is None or event.denial.rule == "http: bad-body":
            assert event.error in {"", "client went away"}
        assert (event.denial.code, event.denial.rule) == ("malformed", "http: http2")
        with Client.through(house) as client:
            assert client.get().status == 200


def test_who_reads_by_the_message_floods_nobody(make: HouseMaker) -> None:
    """Windows of eight bytes for what it was sent, also after the stream's end. Seen failing with each counted."""

    def script(wire: Wire) -> None:
        with contextlib.suppress(ConnectionError):
            while wire.message():
                wire.send(reply(200, b"x" * 20_000))

    limits = replace(LIMITS, h2_allowance=100, h2_allowance_per_second=1)
    with (
        tls_origin(script) as origin,
        make(origins={API: origin}, limits=limits) as house,
        Client.through(house) as client,
    ):
        for stream in (1, 3):
            assert len(client.get().body) == 20_000
            client.frame(*[WindowUpdateFrame(each, window_increment=8) for each in (0, stream)] * 1000)
        assert client.get().status == 200
        with contextlib.suppress(OSError):
            client.frame(*[WindowUpdateFrame(0, window_increment=8)] * 5000)  # not remembered for ever
            client.drained()
        assert client.goaway is None or client.goaway.error_code == 11


def test_a_burst_of_streams_holds_nobody_up(make: HouseMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library looks through all streams for each that begins, before we hear of any: it cost 10 s of CPU.

    Seen failing with a `_SLICE` of 1 MiB, and with the `open_inbound_streams` of the library.
    """
    begun: list[int] = []
    looked_at: list[int] = []
    begin, look = _Machine._begin_new_stream, _Machine._open_streams

    def counting(self: _Machine, *arguments: Any) -> Any:
        if not self.config.client_side:
            begun.append(1)
        return begin(self, *arguments)

    def looking(self: _Machine, remainder: int) -> int:
        looked_at.append(len(self.streams))
        return look(self, remainder)

    held = Held()
    limits = replace(LIMITS, h2_allowance=100, h2_allowance_per_second=1)
    with tls_origin(held) as origin, make(origins={API: origin}, limits=limits) as house:
        with Client.through(house) as client, house.tunnel() as other:
            burst = b"".join(frame.serialize() for _ in range(15_000) for frame in too_many(client))
            monkeypatch.setattr(_Machine, "_begin_new_stream", counting)
            monkeypatch.setattr(_Machine, "_open_streams", looking)
            with contextlib.suppress(OSError):
                client.wire.send(burst)
            held.go.set()
            other.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
            assert other.message().body == b"done"
            while not (denial := house.event().denial):
                pass
            assert "too many frames" in denial.reason
    assert len(begun) < 2_500
    assert sum(looked_at) < 20_000


def endless_head(client: Client) -> list[Frame]:
    """CVE-2024-27316."""
    head = HeadersFrame(1)
    head.data = client.h2.encoder.encode([(":method", "GET")])
    return [head, *(ContinuationFrame(1, data=b"\x00\x01a\x01b" * 100) for _ in range(200))]


def bomb(client: Client) -> list[Frame]:
    """A table entry of 4 KiB, named again and again with one byte: 16 KiB that would become 64 MiB."""
    head = HeadersFrame(1)
    head.data = client.h2.encoder.encode([("x", "a" * 4000)]) + b"\xbe" * 16_000
    head.flags.add("END_HEADERS")
    return [head]


def large_frame(_: Client) -> list[Frame]:
    return [PingFrame(0, opaque_data=b"12345678"), DataFrame(1, data=b"x" * 20_000)]


def naked_data(_: Client) -> list[Frame]:
    return [DataFrame(7, data=b"x")]


def get_on(
    client: Client, stream: int, prefix: bytes = b"", *, extra: tuple[tuple[str, str], ...] = ()
) -> HeadersFrame:
    fields = [(":method", "GET"), (":scheme", "https"), (":authority", "api.test"), (":path", "/"), *extra]
    head = HeadersFrame(stream, data=prefix + client.h2.encoder.encode(fields))
    head.flags |= {"END_HEADERS", "END_STREAM"}
    return head


def a_servers_stream(client: Client) -> list[Frame]:
    return [get_on(client, 2)]


def table_too_large(client: Client) -> list[Frame]:
    """An HPACK table of 2 MiB, which nobody has allowed (RFC 7541 §6.3)."""
    return [get_on(client, 1, b"\x3f\xe1\xff\x7f")]


def no_such_entry(client: Client) -> list[Frame]:
    return [get_on(client, 1, b"\xff\x80\x01")]


def window_beyond_all(_: Client) -> list[Frame]:
    return [WindowUpdateFrame(0, window_increment=2**31 - 1)]


def initial_window_beyond_all(_: Client) -> list[Frame]:
    return [SettingsFrame(0, settings={4: 2**31})]


def pushed_by_a_client(client: Client) -> list[Frame]:
    block = client.h2.encoder.encode([(":method", "GET")])
    return [PushPromiseFrame(1, promised_stream_id=2, data=block, flags=["END_HEADERS"])]


@pytest.mark.parametrize(
    "attack",
    [
        endless_head, bomb, large_frame, naked_data, a_servers_stream, table_too_large, no_such_entry,
        window_beyond_all, initial_window_beyond_all, pushed_by_a_client,
    ],
)  # fmt: skip
def test_an_attack_on_the_connection_ends_it(
    make: HouseMaker, origin: Origin, attack: Callable[[Client], list[Frame]]
) -> None:
    with make(origins={API: origin}) as house:
        with Client.through(house) as client:
            with contextlib.suppress(OSError):
                client.frame(*attack(client))
            goaway = client.drained()
            assert goaway is None or goaway.error_code != 0
        event = house.event()
        assert event.denial.code == "malformed"
        assert origin.accepted == 0


def test_http1_on_a_connection_that_agreed_on_http2(make: HouseMaker, origin: Origin) -> None:
    with make(origins={API: origin}) as house, Client.through(house) as client:
        client.wire.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n" * 10)
        client.drained()
        assert house.event().denial.rule == "http: http2"
        assert origin.accepted == 0


# --- streams -------------------------------------------------------------------------------------


class Held:
    """An origin that answers when it is let go."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.go = threading.Event()

    def __call__(self, wire: Wire) -> None:
        with contextlib.suppress(ConnectionError):
            while wire.message():
                self.asked.set()
                self.go.wait(10)
                wire.send(reply(200, b"done"))


@pytest.mark.parametrize("limit", ["h2_streams", "h2_streams_of_run"])
def test_a_stream_too_many_is_refused_by_itself(make: HouseMaker, limit: str) -> None:
    held = Held()
    limits = replace(LIMITS, **{limit: 3})
    with tls_origin(held) as origin, make(origins={API: origin}, limits=limits) as house:
        with Client.through(house) as client:
            client.h2.remote_settings.max_concurrent_streams = 100  # as if it had not been told
            streams = [client.ask() for _ in range(5)]
            assert [client.until(stream).reset for stream in streams[3:]] == [7, 7]  # REFUSED_STREAM
            held.go.set()
            assert [client.until(stream).body for stream in streams[:3]] == [b"done"] * 3
            assert client.get().body == b"done"


def test_a_stream_that_has_been_answered_makes_room_at_once(make: HouseMaker) -> None:
    """Seen failing with each counted until its exchange has unwound: who kept to the limit was refused, and told."""

    def script(wire: Wire) -> None:
        with contextlib.suppress(OSError):
            wire.until(b"\r\n\r\n")
            wire.send(reply(403, b"no", "Connection: close"))
            wire.rest()

    limits = replace(LIMITS, h2_streams=30)
    with (
        tls_origin(script) as origin,
        make(origins={API: origin}, limits=limits) as house,
        Client.through(house) as client,
    ):
        waiting = [client.ask(method="POST", body=b"x", end=False) for _ in range(30)]
        for _ in range(20):
            while not (over := [stream for stream in waiting if client.answers[stream].ended]):
                assert client.receive()
            more = [client.ask(method="POST", body=b"x", end=False) for _ in over]
            waiting = [stream for stream in waiting if stream not in over] + more
        assert {client.until(stream).reset for stream in client.answers} <= {None, 0}


def test_an_upload_waits_for_its_origin(make: HouseMaker) -> None:
    """Windows open as the origin reads. Seen failing with `Link.taken` called as data comes."""
    go = threading.Event()

    def script(wire: Wire) -> None:
        wire.until(b"\r\n\r\n")
        go.wait(20)
        wire.exactly(SIZE)
        wire.send(reply(200, b"all"))
        wire.rest()

    length = ("content-length", str(SIZE))
    limits = replace(LIMITS, h2_stream_window=100_000, h2_window=150_000)
    with (
        tls_origin(script) as origin,
        make(origins={API: origin}, limits=limits) as house,
        Client.through(house) as client,
    ):
        client.receive()
        assert client.h2.remote_settings.initial_window_size == 100_000
        assert client.h2.outbound_flow_control_window == 150_000
        stream = client.ask(length, method="POST", body=b"", end=False)
        sent = 0
        client.wire.sock.settimeout(1.5)
        with contextlib.suppress(TimeoutError):
            while sent < SIZE:
                while size := min(client.h2.local_flow_control_window(stream), 16_384, SIZE - sent):
                    client.send(stream, b"x" * size)
                    sent += size
                assert client.receive()
        assert sent < SIZE * 2 // 3  # the kernel's buffers on the way, and two windows
        client.wire.sock.settimeout(20)
        go.set()
        client.send(stream, b"x" * (SIZE - sent), end=True)
        assert client.until(stream).body == b"all"


def test_a_reader_that_stops_makes_the_origin_wait_and_is_let_go(make: HouseMaker) -> None:
    sent = 0
    stopped = threading.Event()

    def script(wire: Wire) -> None:
        nonlocal sent
        wire.message()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(1000):
                wire.send(b"x" * 100_000)
                sent += 100_000
        stopped.set()

    limits = replace(LIMITS, body_idle_timeout=1.5)
    with tls_origin(script) as origin, make(origins={API: origin}, limits=limits) as house:
        with Client.through(house, hungry=False) as client:
            stream = client.ask()
            answer = client.until(stream)
            assert (answer.ended, answer.reset) == (False, 2)
            assert len(answer.body) == 65_535
            assert stopped.wait(10)
            # CAPACITY of the pipe, 64 KiB, and what the kernel holds between the origin and us.
            assert sent < 20_000_000
            assert client.wire.sock.fileno() > 0


def test_a_client_that_takes_nothing_is_let_go(make: HouseMaker) -> None:
    """Its windows are open, its socket is full. Seen failing: the stream kept its place, and the connection its own."""

    def script(wire: Wire) -> None:
        wire.message()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(1000):
                wire.send(b"x" * 100_000)

    limits = replace(LIMITS, body_idle_timeout=0.6, client_idle_timeout=0.6)
    with tls_origin(script) as origin, make(origins={API: origin}, limits=limits) as house:
        with Client.through(house) as client:
            client.h2.increment_flow_control_window(2**30)
            client.h2.increment_flow_control_window(2**30, client.ask())
            client.flush()
            assert house.event().error == "client went away"
            for _ in range(100):
                if not house.proxy.connections:
                    break
                threading.Event().wait(0.1)
            assert house.proxy.connections == 0
            assert house.proxy._setup.streams.free == limits.h2_streams_of_run


def test_streams_do_not_wait_for_each_other(make: HouseMaker) -> None:
    def script(wire: Wire) -> None:
        with contextlib.suppress(ConnectionError):
            while request := wire.message():
                wire.send(reply(200, b"x" * (2_000_000 if request.target == "/large" else 10)))

    with tls_origin(script) as origin, make(origins={API: origin}) as house, Client.through(house) as client:
        client.hungry = False
        client.h2.increment_flow_control_window(5_000_000)
        client.flush()
        large = client.ask(path="/large")
        client.until(large, lambda answer: len(answer.body) >= 65_535)
        assert len(client.get(path="/small").body) == 10
        client.h2.increment_flow_control_window(3_000_000, large)
        client.flush()
        assert len(client.until(large).body) == 2_000_000


# --- the end -------------------------------------------------------------------------------------


def test_aclose_lets_streams_finish_and_says_goaway(make: HouseMaker) -> None:
    held = Held()
    with tls_origin(held) as origin, make(origins={API: origin}) as house, Client.through(house) as client:
        stream = client.ask()
        while not any(isinstance(event, SettingsAcknowledged) for event in client.receive()):
            pass  # what came after the GOAWAY, the library would take for a fault
        assert held.asked.wait(10)  # a request that comes when we close is refused
        closing = house.portal.start_task_soon(house.proxy.aclose, 10.0)
        while client.goaway is None:
            client.receive()
        assert (client.goaway.error_code, client.goaway.last_stream_id) == (0, 1)
        held.go.set()
        # The library takes a GOAWAY for the end of everything; a client that goes on reading gets it all.
        raw = client.wire.rest()
        assert b"done" in raw
        closing.result(10)
        assert stream == 1


def test_an_idle_connection_ends(make: HouseMaker, origin: Origin) -> None:
    limits = replace(LIMITS, client_idle_timeout=0.6)
    with make(origins={API: origin}, limits=limits) as house, Client.through(house) as client:
        assert client.get().status == 200
        with contextlib.suppress(OSError):
            for _ in range(100):
                client.h2.ping(b"stay up!")  # a ping is no request
                client.flush()
                if not client.receive():
                    break
                threading.Event().wait(0.1)
            else:
                pytest.fail("pings kept the connection open")


def test_a_client_that_leaves_takes_its_requests_along(make: HouseMaker) -> None:
    seen = threading.Event()
    gone = threading.Event()

    def script(wire: Wire) -> None:
        wire.message()
        seen.set()
        with contextlib.suppress(OSError):
            wire.rest()
        gone.set()

    with tls_origin(script) as origin, make(origins={API: origin}) as house:
        client = Client.through(house)
        client.ask()
        assert seen.wait(10)
        client.wire.close()
        assert gone.wait(10)
        assert house.event().error == "client went away"
