"""HTTP/2 servers that flood, forge and break off: the request fails with its reason, and the next one is served.

Seen failing with `Link.spend` doing nothing: the floods are endured, and the request waits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

from h2.exceptions import ProtocolError
from hyperframe.frame import (
    AltSvcFrame,
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from moat.proxy import Limits
from tests.proxy.conftest import house
from tests.proxy.h2peers import Client, Server
from tests.proxy.test_h2_upstream import h2_origin

API = ("api.test", 443)
Attack = Callable[[Server, int], list[Frame]]


def head(
    server: Server, stream: int, *fields: tuple[str, str], raw: bytes = b"", end: bool = True
) -> HeadersFrame:
    frame = HeadersFrame(stream)
    frame.data = server.h2.encoder.encode([*fields]) + raw
    frame.flags.add("END_HEADERS")
    if end:
        frame.flags.add("END_STREAM")
    return frame


def begun(server: Server, stream: int) -> HeadersFrame:
    return head(server, stream, (":status", "200"), end=False)


FLOODS: dict[str, Attack] = {
    "ping": lambda _server, _stream: [PingFrame(0, opaque_data=b"12345678")] * 300,
    "settings": lambda _server, _stream: [SettingsFrame(0, settings={4: 70_000})] * 300,
    "windows": lambda _server, _stream: [WindowUpdateFrame(0, window_increment=1)] * 300,
    "alternatives": lambda _server, _stream: [AltSvcFrame(0, origin=b"https://a", field=b'h3=":1"')] * 300,
    "farewells": lambda _server, stream: [GoAwayFrame(0, last_stream_id=stream)] * 300,
    "empty data": lambda server, stream: [begun(server, stream), *[DataFrame(stream, data=b"")] * 300],
}
BREAKS: dict[str, Attack] = {
    "continuations": lambda _server, stream: [
        HeadersFrame(stream, data=b"\x88"),
        *(ContinuationFrame(stream, data=b"\x00\x01a\x01b" * 100) for _ in range(200)),
    ],
    "bomb": lambda server, stream: [
        head(server, stream, (":status", "200"), ("x", "a" * 4000), raw=b"\xbe" * 12_000)
    ],
    "table too large": lambda server, stream: [
        head(server, stream, raw=b"\x3f\xe1\xff\x7f\x88"),
    ],
    "no such index": lambda server, stream: [head(server, stream, (":status", "200"), raw=b"\xff\x80\x01")],
    "push": lambda server, stream: [
        PushPromiseFrame(
            stream,
            promised_stream_id=2,
            flags={"END_HEADERS"},
            data=server.h2.encoder.encode([(":method", "GET"), (":path", "/"), (":scheme", "https")]),
        )
    ],
    "connection window": lambda _server, _stream: [WindowUpdateFrame(0, window_increment=2**31 - 1)],
    "initial window": lambda _server, _stream: [SettingsFrame(0, settings={4: 2**31})],
    "data of no stream": lambda _server, _stream: [DataFrame(77, data=b"x")],
    "head of its own": lambda server, _stream: [head(server, 2, (":status", "200"))],
    "goaway": lambda server, stream: [begun(server, stream), GoAwayFrame(0, last_stream_id=0)],
    "more than the window": lambda server, stream: [
        begun(server, stream),
        *(DataFrame(stream, data=b"x" * 16_384) for _ in range(80)),
    ],
    "large frame": lambda _server, stream: [DataFrame(stream, data=b"x" * 20_000)],
}  # fmt: skip
OF_THE_STREAM: dict[str, Attack] = {
    "reset": lambda server, stream: [begun(server, stream), RstStreamFrame(stream, error_code=2)],
    "stream window": lambda _server, stream: [WindowUpdateFrame(stream, window_increment=2**31 - 1)],
    "switching": lambda server, stream: [head(server, stream, (":status", "101"))],
    "two statuses": lambda server, stream: [head(server, stream, (":status", "200"), (":status", "204"))],
    "no status": lambda server, stream: [head(server, stream, ("server", "x"))],
    "capital": lambda server, stream: [head(server, stream, (":status", "200"), ("X-Y", "z"))],
    "connection field": lambda server, stream: [
        head(server, stream, (":status", "200"), ("transfer-encoding", "chunked"))
    ],
    "line end": lambda server, stream: [head(server, stream, (":status", "200"), ("x", "a\r\nset-cookie: b"))],
    "two lengths": lambda server, stream: [
        head(server, stream, (":status", "200"), ("content-length", "1"), ("content-length", "2"), end=False)
    ],
    "less than its length": lambda server, stream: [
        head(server, stream, (":status", "200"), ("content-length", "9"), end=False),
        DataFrame(stream, data=b"x", flags=["END_STREAM"]),
    ],
    "pseudo trailer": lambda server, stream: [
        head(server, stream, (":status", "200"), ("trailer", "x"), end=False),
        head(server, stream, (":status", "204")),
    ],
    "interim without end": lambda server, stream: [
        head(server, stream, (":status", "103"), end=False) for _ in range(40)
    ],
}  # fmt: skip
ATTACKS = {**FLOODS, **BREAKS, **OF_THE_STREAM}


def test_no_attack_of_a_server_looks_like_an_answer() -> None:
    """All of them through one proxy: each is refused or cut, and recorded; none costs the next request."""
    limits = replace(Limits(), h2_allowance=100, h2_allowance_per_second=1, h2_window=200_000)
    outcomes: dict[str, tuple[int, bool, str]] = {}

    def script(server: Server) -> None:
        while True:
            request = server.request()
            name = (request.get(":path") or "/")[1:].replace("-", " ")
            if name not in ATTACKS:
                server.reply(request.stream, 200, b"well")
                continue
            server.frame(*ATTACKS[name](server, request.stream))

    with h2_origin(script) as origin, house("uvloop", origins={API: origin}, limits=limits) as made:
        for name in ATTACKS:
            with Client.through(made) as client:
                answer = client.get(path="/" + name.replace(" ", "-"), method="POST")
                event = made.event()
                outcomes[name] = (answer.status, answer.ended and answer.status == 200, event.error)
                assert (client.get().body, made.event().error) == (b"well", ""), name
    looked_whole = {name for name, (_, whole, _) in outcomes.items() if whole}
    assert looked_whole == set(), outcomes
    silent = {name for name, (_, _, error) in outcomes.items() if not error}
    assert silent == set(), outcomes
    assert {status for status, _, _ in outcomes.values()} <= {200, 502}
    assert "stream 77" in outcomes["data of no stream"][2]
    assert all("nothing" in outcomes[name][2] for name in FLOODS), outcomes
    assert all("broke HTTP/2" in outcomes[name][2] for name in BREAKS if name != "goaway"), outcomes


def test_after_goaway_what_was_taken_goes_on() -> None:
    def script(server: Server) -> None:
        with contextlib.suppress(ConnectionError, ProtocolError):
            request = server.request()
            server.h2.send_headers(request.stream, [(":status", "200")])
            server.flush()
            server.frame(GoAwayFrame(0, last_stream_id=request.stream))
            server.send(request.stream, b"all of it", end=True)
            server.receive()

    with h2_origin(script) as origin, house("uvloop", origins={API: origin}) as made:
        with Client.through(made) as client:
            assert [client.get().body for _ in range(2)] == [b"all of it"] * 2
        assert origin.accepted == 2
