"""Rows of HTTP/2 frames to begin with: ordinary ones, and one of each attack that the suite knows."""

from __future__ import annotations

from hpack import Encoder
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

from tests.fuzz.h2 import shortened
from tests.proxy.conftest import PLACEHOLDER, SECRET

Field = tuple[str, str]
_BOTH: list[list[Frame]] = [
    [PingFrame(0, opaque_data=b"12345678")],
    [SettingsFrame(0, settings={1: 0, 3: 1, 4: 0, 5: 16_384, 6: 100})],
    [WindowUpdateFrame(0, window_increment=65_535), WindowUpdateFrame(1, window_increment=2**31 - 1)],
    [PriorityFrame(1, depends_on=3, stream_weight=1), ExtensionFrame(0xA, stream_id=0, flag_byte=0, body=b"x")],
    [GoAwayFrame(0, last_stream_id=0), RstStreamFrame(1, error_code=8)],
]  # fmt: skip


def _head(stream: int, fields: list[Field], *flags: str, raw: bytes = b"") -> HeadersFrame:
    return HeadersFrame(
        stream, data=Encoder().encode(fields, huffman=False) + raw, flags=["END_HEADERS", *flags]
    )


def _asked(*extra: Field, method: str = "GET", host: str = "api.test", path: str = "/") -> list[Field]:
    return [(":method", method), (":scheme", "https"), (":authority", host), (":path", path), *extra]


def of_clients() -> list[bytes]:
    data = DataFrame(1, data=b"hello", flags=["END_STREAM"])
    rows: list[list[Frame]] = [
        [_head(1, _asked(), "END_STREAM")],
        [_head(1, _asked(), "END_STREAM"), _head(3, _asked(), "END_STREAM"), RstStreamFrame(3, error_code=8)],
        [_head(1, _asked(method="POST")), DataFrame(1, data=b"hel"), data],
        [_head(1, _asked(("content-length", "5"), method="POST")), data],
        [_head(1, _asked(("expect", "100-continue"), method="POST")), data],
        [_head(1, _asked(("te", "trailers"), method="POST")), DataFrame(1, data=b"x"),
         _head(1, [("x-sum", "1")], "END_STREAM")],
        [_head(1, _asked(host="other.test"), "END_STREAM")],
        [_head(1, _asked(("host", "other.test")), "END_STREAM")],
        [_head(1, _asked(("authorization", f"Bearer {PLACEHOLDER}")), "END_STREAM")],
        [_head(1, _asked(("x", PLACEHOLDER), host="other.test", path=f"/?{PLACEHOLDER}"), "END_STREAM")],
        [_head(1, [(":method", "CONNECT"), (":authority", "api.test:443")])],
        [_head(1, _asked(("transfer-encoding", "chunked"), ("connection", "close")), "END_STREAM")],
        [_head(1, _asked(("X-A", "b\r\nx: y")), "END_STREAM")],
        [_head(2, _asked(), "END_STREAM")],
        [_head(1, _asked(), "END_STREAM", raw=b"\x3f\xe1\xff\x7f"), _head(3, [], raw=b"\xbe\xbe")],
        [HeadersFrame(1, data=b"\x82"), ContinuationFrame(1, data=b"\x87\x84", flags=["END_HEADERS"])],
        [PushPromiseFrame(1, promised_stream_id=2, data=b"\x82", flags=["END_HEADERS"])],
    ]  # fmt: skip
    inputs = [b"\0" + shortened(*row) for row in (*rows, *_BOTH)]
    return [*inputs, *(b"\x02" + each[1:] for each in inputs), b"\x41" + inputs[0][1:], b"\x15GET / HTTP/1.1"]


def of_servers() -> list[bytes]:
    whole = [_head(1, [(":status", "200"), ("content-length", "5")])]
    rows: list[list[Frame]] = [
        [_head(1, [(":status", "204")], "END_STREAM")],
        [*whole, DataFrame(1, data=b"hello", flags=["END_STREAM"])],
        [*whole, DataFrame(1, data=b"hell", flags=["END_STREAM"])],
        [_head(1, [(":status", "103")]), _head(1, [(":status", "200")]), DataFrame(1, data=b"hel"),
         DataFrame(1, data=b"lo", flags=["END_STREAM"])],
        [_head(1, [(":status", "200"), ("trailer", "x")]), DataFrame(1, data=SECRET.encode()),
         _head(1, [("x", SECRET)], "END_STREAM")],
        [_head(1, [(":status", "200"), ("x", SECRET)]), DataFrame(1, data=SECRET[:9].encode()),
         DataFrame(1, data=SECRET[9:].encode(), flags=["END_STREAM"])],
        [_head(1, [(":status", "200"), ("content-encoding", "gzip")]), DataFrame(1, data=b"\x1f\x8b\x08")],
        [_head(1, [(":status", "200")]), _head(3, [(":status", "200")]), DataFrame(3, data=b"x"),
         DataFrame(1, data=b"y", flags=["END_STREAM"]), DataFrame(3, data=b"", flags=["END_STREAM"])],
        [*whole, GoAwayFrame(0, last_stream_id=1), DataFrame(1, data=b"hello", flags=["END_STREAM"])],
        [*whole, RstStreamFrame(1, error_code=2)],
        [_head(1, [(":status", "200")]), DataFrame(1, data=b"hel"), RstStreamFrame(1, error_code=2)],
        [_head(1, [(":status", "101"), ("transfer-encoding", "chunked")], "END_STREAM")],
        [_head(2, [(":status", "200")], "END_STREAM")],
        [_head(1, [(":status", "401"), ("www-authenticate", "Bearer")], "END_STREAM")],
    ]  # fmt: skip
    inputs = [b"\0" + shortened(*row) for row in (*rows, *_BOTH)]
    return [*inputs, *(b"\x1d" + each[1:] for each in inputs)]
