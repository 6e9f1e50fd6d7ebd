"""Our reading of HTTP/1.1 against h11 and httptools (llhttp).

The claim is one-sided, as it must be for a proxy: whatever we accept, they accept and read in the same way.
Where they are more lenient than we are, and we therefore do not compare, is the list `STRICTER`; each
entry is shown to be a real difference, so that the list cannot outlive its reasons.
"""

from __future__ import annotations

import h11
import httptools
import pytest
from hypothesis import example, given, settings, strategies as st

from moat.proxy.chunked import ChunkedReader
from moat.proxy.http1 import Framing, MalformedError, parse_request, parse_response
from moat.proxy.limits import Limits

LIMITS = Limits()


def mostly(good, *bad):
    """A strategy that draws a bad value once in a while: most examples must be accepted to compare much."""
    return st.sampled_from([*(item for item in good for _ in range(10 * len(bad))), *bad])


end = mostly([b"\r\n"], b"\n", b"\r", b"\r\n ")
token = st.text("abcXYZ019-_!#$%&'*+.^`|~", min_size=1, max_size=8).map(str.encode)
text = st.binary(max_size=12).map(lambda data: bytes(byte for byte in data if byte >= 32 and byte != 127))
random_field = st.tuples(token, mostly([b":", b": ", b":\t"], b" :"), text, end).map(b"".join)
raw_field = st.tuples(token, st.just(b":"), st.binary(max_size=6), end).map(b"".join)
framing_field = mostly(
    [
        b"Content-Length: 5\r\n", b"content-length: 05 \r\n", b"Content-Length:0\r\n", b"Connection: close\r\n",
        b"Transfer-Encoding: chunked\r\n", b"transfer-encoding:\tChunked\r\n", b"Connection: keep-alive, x\r\n",
        b"Expect: 100-continue\r\n", b"X-Nothing:\r\n",
    ],
    b"Content-Length: +5\r\n", b"Content-Length: 5, 5\r\n", b"Transfer-Encoding: gzip, chunked\r\n",
    b"Content-Length : 5\r\n",
)  # fmt: skip
fields = st.lists(random_field | framing_field | raw_field, max_size=4).map(b"".join)
version = mostly([b"HTTP/1.1"], b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1")
request_line = st.tuples(
    mostly([b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT"], b"G(T"),
    mostly([b" "], b"  "),
    mostly([b"/", b"/a?b", b"http://a.example/x"], b"*", b"/#f", b"/\xff", b"a.example:443", b""),
    st.just(b" "), version, end,
).map(b"".join)  # fmt: skip
status_line = st.tuples(
    version,
    mostly([b" 200", b" 404", b" 204", b" 304", b" 100"], b" 999", b" 20", b"  200"),
    mostly([b" OK", b" ", b" \xff"], b"", b" a\x00"), end,
).map(b"".join)  # fmt: skip
host = mostly([b"Host: a.example\r\n"], b"")
requests = st.tuples(request_line, host, fields, end).map(b"".join)
responses = st.tuples(status_line, fields, end).map(b"".join)


def ours(parse, data):
    try:
        return parse(data)
    except MalformedError:
        return None


class Seen:
    """What httptools says about a head, and about the body behind it."""

    def __init__(self):
        self.target = b""
        self.headers = []
        self.complete = False
        self.keep_alive = False
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""
        self.done = False

    def on_url(self, url):
        self.target += url

    def on_header(self, key, val):
        self.headers.append((key, val.strip(b" \t")))

    def on_headers_complete(self):
        self.complete = True
        self.keep_alive = self.parser.should_keep_alive()

    def on_body(self, body):
        self.body += body

    def on_message_complete(self):
        self.done = True


def by_httptools(data: bytes) -> Seen:
    seen = Seen()
    seen.parser.feed_data(data)
    return seen


def by_h11(data: bytes, role=h11.SERVER, method=b"GET"):
    connection = h11.Connection(role)
    if role is h11.CLIENT:
        connection.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
        connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    return connection, connection.next_event()


@settings(max_examples=500, deadline=None)
@given(requests)
@example(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
@example(b"\r\nPOST /a?b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nX: \t y \xff \r\n\r\n")
def test_requests_that_we_accept_read_the_same_elsewhere(data):
    head = ours(lambda part: parse_request(part, LIMITS), data)
    if head is None:
        return
    data = data[: head.size]
    wanted = [(key.lower(), val) for key, val in head.headers]
    _, event = by_h11(data.removeprefix(b"\r\n"))
    assert isinstance(event, h11.Request)
    assert (event.method, event.target) == (head.method, head.target)
    assert list(event.headers) == [(key, _h11_value(key, val)) for key, val in wanted]
    seen = by_httptools(data)
    assert seen.complete
    assert (seen.parser.get_method(), seen.target) == (head.method, head.target)
    assert [(key.lower(), val) for key, val in seen.headers] == wanted
    assert seen.keep_alive == head.keep_alive or head.minor == 0  # a proxy keeps no HTTP/1.0 client
    assert seen.done == (head.framing is Framing.NONE)


def _h11_value(key, val):
    """h11 lower-cases `chunked` for its callers."""
    return val.lower() if key == b"transfer-encoding" else val


@settings(max_examples=500, deadline=None)
@given(responses, st.sampled_from([b"GET", b"HEAD"]))
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"GET")
def test_responses_that_we_accept_read_the_same_in_h11(data, method):
    head = ours(lambda part: parse_response(part, method, LIMITS), data)
    if head is None or head.status > 599:  # 999 is in use; h11 stops at 599
        return
    connection, event = by_h11(data[: head.size], h11.CLIENT, method)
    assert isinstance(event, h11.Response | h11.InformationalResponse)
    assert (event.status_code, event.reason) == (head.status, head.reason)
    assert list(event.headers) == [(k.lower(), _h11_value(k.lower(), v)) for k, v in head.headers]
    if head.status < 200:
        return
    following = connection.next_event()
    assert isinstance(following, h11.EndOfMessage) == (head.framing is Framing.NONE)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.binary(min_size=1, max_size=20), st.sampled_from([b"", b";x", b";x=y", b';x="y z"']))
    ),
    st.binary(max_size=8),
)
def test_chunked_bodies_that_we_accept_read_the_same_elsewhere(chunks, rest):
    body = b"".join(b"%x%b\r\n%b\r\n" % (len(data), ext, data) for data, ext in chunks) + b"0\r\n\r\n"
    reader = ChunkedReader(LIMITS, blame="client")
    slices, consumed = reader.feed(body + rest)
    payload = b"".join(slices)
    assert (reader.done, consumed) == (True, len(body))
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    seen = by_httptools(head + body)
    assert (seen.body, seen.done) == (payload, True)
    connection, _ = by_h11(head + body + rest)
    events = []
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        events.append(bytes(event.data))
    assert b"".join(events) == payload
    assert connection.trailing_data[0] == rest


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40) | st.text('0123456789abcdefg\r\n; \t="x', max_size=30).map(str.encode))
@example(b"5 \r\nhello\r\n0\r\n\r\n")
def test_no_chunked_body_is_accepted_that_h11_refuses(body):
    reader = ChunkedReader(LIMITS, blame="client")
    try:
        slices, consumed = reader.feed(body)
    except MalformedError:
        return
    if not reader.done:
        return
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    connection, _ = by_h11(head + body[:consumed])
    payload = b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Data)
        payload += bytes(event.data)
    assert payload == b"".join(slices)


POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
# What an oracle lets through and we do not: (why, bytes, oracles that accept it)
STRICTER = [
    ("both lengths", POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", {"h11"}),
    ("bare LF", b"GET / HTTP/1.1\nHost: a\n\n", {"h11"}),
    ("folded lines", b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n", {"h11"}),
    ("agreeing lengths", POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n", {"h11"}),
    ("a list of lengths", POST + b"Content-Length: 5, 5\r\n\r\n", {"h11"}),
    ("no Host", b"GET / HTTP/1.1\r\n\r\n", {"httptools"}),
    ("two Hosts", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", {"httptools"}),
    ("a fragment", b"GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", {"h11", "httptools"}),
    ("a form for no method", b"GET admin HTTP/1.1\r\nHost: a\r\n\r\n", {"h11"}),
    ("chunked in HTTP/1.0", b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", {"h11", "httptools"}),
    ("empty Host", b"GET / HTTP/1.1\r\nHost:\r\n\r\n", {"h11", "httptools"}),
    ("look-alike", POST + b"Content_Length: 5\r\n\r\n", {"h11", "httptools"}),
    ("framing as an option", POST + b"Connection: content-length\r\nContent-Length: 5\r\n\r\n", {"h11", "httptools"}),
    ("HTTP/1.2", b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", {"h11"}),
    ("control bytes", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x01b\r\n\r\n", {"h11"}),
]  # fmt: skip


@pytest.mark.parametrize(("why", "data", "oracles"), STRICTER)
def test_we_are_stricter_where_we_say(why, data, oracles):
    assert ours(lambda part: parse_request(part, LIMITS), data) is None
    accepted = set()
    try:
        if isinstance(by_h11(data)[1], h11.Request):
            accepted.add("h11")
    except h11.RemoteProtocolError:
        pass
    try:
        if by_httptools(data).complete:
            accepted.add("httptools")
    except httptools.HttpParserError:
        pass
    assert accepted == oracles, why
