"""Our reading of HTTP/1.1 against h11 and llhttp, over the corpus and over generated messages.

The claim is one-sided, as it must be for a proxy: whatever we accept, they accept and read in the same way.
Where they are more lenient is the table `STRICTER`, and where one of them cannot be asked the table `SILENT`;
both are compared with what happens, so that neither can outlive its reasons. There is no table of where we
are laxer.
"""

from __future__ import annotations

from collections import defaultdict

from hypothesis import example, given, settings, strategies as st

from moat.proxy.chunked import ChunkedReader
from moat.proxy.head import Framing, MalformedError
from moat.proxy.http1 import parse_request, parse_response
from moat.proxy.limits import Limits
from tests.proxy import cases
from tests.proxy.cases import Accepted, Case, Refused
from tests.proxy.oracles import Heard, h11_reads, llhttp_reads

LIMITS = Limits()
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

# What one of them cannot be asked: names of cases, and why that says nothing about us.
SILENT = {
    "llhttp": {
        "a method of one letter": "knows a fixed list of methods; any token is one (RFC 9110 §9.1)",
        "a method of every kind of token character": "the same",
        "a method in lower case is another method": "the same",
        "a method of 32 bytes": "the same",
        "trace in lower case is no TRACE": "the same",
        "connection: upgrade with a body": "leaves everything behind an upgrade to its caller",
    },
    "h11": {},
}

# code → why we refuse, and who lets at least one case of it through.
STRICTER: dict[str, tuple[str, set[str]]] = {
    "bad-connection": ("the next hop would drop what frames or routes the message", {"h11", "llhttp"}),
    "bad-expect": ("an expectation that nobody knows must fail (RFC 9110 §10.1.1)", {"h11", "llhttp"}),
    "bad-length": ("lists, and more digits than other parsers' integers hold", {"h11", "llhttp"}),
    "bad-method": ("no method in use has 33 bytes", {"h11"}),
    "bad-request-line": ("one space between the parts, and no HTTP/0.9", {"llhttp"}),
    "bad-status-line": ("other protocols, other versions, statuses below 100", {"h11", "llhttp"}),
    "bad-target": ("high bytes and tabs are read in as many ways as there are decoders", {"llhttp"}),
    "bad-target-form": ("a form that the method does not have is routed by guess", {"h11", "llhttp"}),
    "bad-trailer": ("what frames, routes or authenticates comes before the body", {"h11", "llhttp"}),
    "bad-transfer-encoding": ("a coding that the next hop may not know hides the body's end", {"llhttp"}),
    "bad-version": ("HTTP/1.0 and HTTP/1.1 are spoken here", {"h11", "llhttp"}),
    "bare-cr": ("some servers end lines there", {"llhttp"}),
    "bare-lf": ("some servers end lines there, others do not", {"h11", "llhttp"}),
    "body-forbidden": ("a status without a body that announces one", {"h11", "llhttp"}),
    "chunk-line": ("bytes that are no data must be bounded", {"h11", "llhttp"}),
    "chunk-size": ("white space around a size is legal and only seen in attacks", {"h11"}),
    "connect-body": ("what follows CONNECT belongs to the tunnel", {"h11", "llhttp"}),
    "control-byte": ("terminals and logs obey them", {"h11", "llhttp"}),
    "duplicate-host": ("the request would have two destinations", {"llhttp"}),
    "duplicate-length": ("also when they agree: something has already read the message twice", {"h11"}),
    "duplicate-transfer-encoding": ("the same", {"llhttp"}),
    "empty-lines": ("one is tolerated (RFC 9112 §2.2)", {"llhttp"}),
    "fragment": ("never part of a request", {"h11", "llhttp"}),
    "head-too-large": ("a head is held in memory", {"h11", "llhttp"}),
    "length-and-chunked": ("every pair of readings is a smuggled request", {"h11"}),
    "look-alike": ("CGI reads `_` as `-`", {"h11", "llhttp"}),
    "missing-host": ("the request would have no destination", {"h11", "llhttp"}),
    "nul": ("strings end there in C", {"llhttp"}),
    "obs-fold": ("deprecated; some servers see two fields (RFC 9112 §5.2)", {"h11"}),
    "target-too-long": ("a bound of its own, for logs and rules", {"h11", "llhttp"}),
    "too-many-fields": ("bounds the work per head, which size alone does not", {"h11", "llhttp"}),
    "trace": ("its answer is the request, injected credential included", {"h11", "llhttp"}),
    "unasked-upgrade": ("what follows would be no HTTP, by the server's choice", {"h11", "llhttp"}),
}  # fmt: skip


def heard_by(case: Case) -> dict[str, Heard | None]:
    """What each oracle says of a case; those that cannot be asked are missing."""
    if case.reads == "response":
        until_close = isinstance(case.verdict, Accepted) and case.verdict.framing == "until-close"
        heard = {"h11": h11_reads(case.wire, method=case.method, asked=case.asked, ended=until_close)}
        if case.method == b"GET":  # llhttp cannot be told what was asked
            heard["llhttp"] = llhttp_reads(case.wire, response=True)
        return heard
    wire = (CHUNKED if case.reads == "chunked" else b"") + case.wire
    return {"h11": h11_reads(wire.removeprefix(b"\r\n")), "llhttp": llhttp_reads(wire)}


def test_what_we_accept_they_accept_and_read_alike():
    wrong, silent = [], defaultdict(set)
    for case in cases.everything():
        if isinstance(case.verdict, Accepted):
            for oracle, heard in heard_by(case).items():
                until_close = oracle == "llhttp" and case.verdict.framing == "until-close"
                alike = heard is not None and (
                    heard.payload == case.verdict.payload and (heard.done or until_close)
                )
                if not alike and case.name in SILENT[oracle]:
                    silent[oracle].add(case.name)
                elif not alike:
                    wrong.append(f"{oracle}: {case.name}: {heard}")
    assert wrong == []
    assert silent == {oracle: set(names) for oracle, names in SILENT.items() if names}


def test_what_we_wait_for_they_do_not_refuse():
    wrong = []
    for case in cases.everything():
        if not isinstance(case.verdict, Accepted | Refused) and case.wire:
            wrong += [f"{oracle}: {case.name}" for oracle, heard in heard_by(case).items() if heard is None]
    assert wrong == []


def test_where_we_are_stricter_is_the_table():
    found = defaultdict(set)
    for case in cases.everything():
        if isinstance(case.verdict, Refused):
            for oracle, heard in heard_by(case).items():
                if heard is not None and heard.start is not None and (heard.done or case.refused_in_head):
                    found[case.verdict.code].add(oracle)
    assert found == {code: oracles for code, (_why, oracles) in STRICTER.items()}


# --- generated messages --------------------------------------------------------------------------


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


@settings(max_examples=500)
@given(requests)
@example(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
@example(b"\r\nPOST /a?b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nX: \t y \xff \r\n\r\n")
def test_requests_that_we_accept_read_the_same_elsewhere(data):
    head = ours(lambda part: parse_request(part, LIMITS), data)
    if head is None:
        return
    data = data[: head.size]
    wanted = [(key.lower(), val) for key, val in head.headers]
    theirs = h11_reads(data.removeprefix(b"\r\n"))
    assert theirs is not None
    assert theirs.start == (head.method, head.target)
    assert theirs.headers == [(key, _h11_value(key, val)) for key, val in wanted]
    theirs = llhttp_reads(data)
    assert theirs is not None
    assert (theirs.start, theirs.headers) == ((head.method, head.target), wanted)
    assert theirs.keep_alive == head.keep_alive or head.minor == 0  # a proxy keeps no HTTP/1.0 client
    assert theirs.done == (head.framing is Framing.NONE)


def _h11_value(key, val):
    """h11 lower-cases `chunked` for its callers."""
    return val.lower() if key == b"transfer-encoding" else val


@settings(max_examples=500)
@given(responses, st.sampled_from([b"GET", b"HEAD"]))
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"GET")
def test_responses_that_we_accept_read_the_same_elsewhere(data, method):
    head = ours(lambda part: parse_response(part, method, LIMITS), data)
    if head is None or head.status > 599:  # 999 is in use; h11 stops at 599
        return
    data = data[: head.size]
    wanted = [(key.lower(), val) for key, val in head.headers]
    theirs = h11_reads(data, method=method)
    assert theirs is not None
    assert theirs.start == (head.status, head.reason)
    assert theirs.headers == [(key, _h11_value(key, val)) for key, val in wanted]
    assert theirs.done == (head.framing is Framing.NONE)
    if method == b"GET":
        theirs = llhttp_reads(data, response=True)
        assert theirs is not None
        assert (theirs.start, theirs.headers) == ((head.status, head.reason), wanted)
        assert theirs.done == (head.framing is Framing.NONE)


@settings(max_examples=300)
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
    for theirs in (h11_reads(CHUNKED + body), llhttp_reads(CHUNKED + body)):
        assert theirs is not None
        assert (theirs.payload, theirs.done) == (payload, True)


# What is not quite a chunked body. (Of bytes drawn at random none in three hundred is accepted.)
_SIZES = (
    *(b"2", b"2", b"2", b"2", b"02", b"2;x", b"2;x=y", b'2;x="y"'),
    *(b"2 ", b"2\t", b" 2", b"+2", b"0x2", b"2;\0", b"1", b"3", b""),
)
_ENDS = (*[b"\r\n"] * 15, b"\n", b"\r", b"\r\r\n", b"")
_LAST = (
    b"0\r\n\r\n",
    b"0\r\n\r\n",
    b"000;x\r\n\r\n",
    b"0\r\nA: b\r\n\r\n",
    b"0\r\nA : b\r\n\r\n",
    b"0\n\n",
    b"0\r\n\n",
    b"0",
)
_chunk = st.tuples(st.sampled_from(_SIZES), st.sampled_from(_ENDS), st.just(b"ab"), st.sampled_from(_ENDS))
nearly_chunked = st.tuples(st.lists(_chunk.map(b"".join), max_size=3).map(b"".join), st.sampled_from(_LAST))


@settings(max_examples=300)
@given(nearly_chunked.map(b"".join))
@example(b"5 \r\nhello\r\n0\r\n\r\n")
def test_no_chunked_body_is_accepted_that_they_refuse(body):
    reader = ChunkedReader(LIMITS, blame="client")
    slices = ours(lambda part: b"".join(reader.feed(part)[0]), body)
    if slices is None or not reader.done:
        return
    for theirs in (h11_reads(CHUNKED + body), llhttp_reads(CHUNKED + body)):
        assert theirs is not None
        assert (theirs.payload, theirs.done) == (slices, True)


def test_an_oracle_that_hears_nothing_would_be_noticed():
    """The tables rest on these two functions: both tell a refusal from a message, and the end from the rest."""
    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"
    for reads in (h11_reads, llhttp_reads):
        assert reads(b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n") is None
        heard = reads(request + b"helloGET /")
        assert heard is not None
        assert (heard.start, heard.payload, heard.done) == ((b"POST", b"/"), b"hello", True)
        heard = reads(request + b"hell")
        assert heard is not None
        assert (heard.payload, heard.done) == (b"hell", False)
