"""What is fuzzed: functions of bytes that raise nothing, or have found a fault.

Each feeds untrusted bytes to the proxy's own readers and checks what must hold of any answer: only the errors
that are promised, the same reading however the bytes were split, and no reading that h11 does not share. The
first byte of an input says how it is split.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import suppress

from moat.authority import AuthorityError, parse_authority
from moat.proxy.address import refuse
from moat.proxy.certs import RunCA
from moat.proxy.head import Form, Framing, MalformedError, RequestHead, ResponseHead
from moat.proxy.http1 import parse_request, parse_response, split_absolute
from moat.proxy.render import (
    forward_request_headers,
    forward_response_headers,
    render_request,
    render_response,
)
from moat.proxy.tls import TLSError, TLSSession
from tests.fuzz.h2 import h2_client, h2_server
from tests.proxy.cases import Accepted, Case, Refused, Unfinished, Verdict
from tests.proxy.oracles import Heard, h11_reads, llhttp_reads
from tests.proxy.reading import LIMITS, read

_METHODS = (b"GET", b"HEAD", b"POST", b"CONNECT")


def connect(data: bytes) -> None:
    """What a client may write behind CONNECT: one spelling of one place, or an error."""
    try:
        authority = parse_authority(data, default_port=443)
    except AuthorityError:
        authority = None
    if authority is not None:  # outside of the `try`: what it is written as must be readable again
        assert parse_authority(str(authority)) == authority
        assert authority.host == authority.host.lower()
        assert not set(authority.host) & set(" /@#?%\\[]\r\n\t\0")
        if authority.address is not None:
            host = f"[{authority.host}]" if ":" in authority.host else authority.host
            assert parse_authority(host, default_port=1).address == authority.address
            refuse(authority.address)
    head = b"CONNECT " + data + b" HTTP/1.1\r\nHost: a\r\n\r\n"
    with suppress(MalformedError, AuthorityError):
        if (parsed := parse_request(head, LIMITS)) is not None and parsed.form is Form.AUTHORITY:
            parse_authority(parsed.target)


def heads(data: bytes) -> None:
    """A head of a request, or of a response."""
    pattern, wire = _split_off(data)
    if pattern & 1:
        _request(wire, pattern)
    else:
        _response(wire, pattern)


def _request(wire: bytes, pattern: int) -> None:
    verdict = _the_same_in_pieces(_case("request", wire), pattern)
    try:
        head = parse_request(wire, LIMITS)
    except MalformedError:
        assert isinstance(verdict, Refused)
        return
    if head is None:
        assert isinstance(verdict, Unfinished)
        return
    _check_request(head)
    _agrees(verdict, h11_reads(wire.removeprefix(b"\r\n")), head)
    if (heard := llhttp_reads(wire)) is not None and not head.upgrade and not _asks_for_upgrade(head):
        _agrees(verdict, heard, head)


def _check_request(head: RequestHead) -> None:
    if head.form is Form.ABSOLUTE:
        scheme, _, target = split_absolute(head.target)
        assert scheme in {b"http", b"https"}
        assert target.startswith(b"/")
    wire = render_request(head.method, head.target, forward_request_headers(head))
    if head.host:  # an HTTP/1.0 request may have none; the exchange adds it
        again = parse_request(wire, LIMITS)
        assert again is not None
        assert (again.method, again.target, again.host) == (head.method, head.target, head.host)
        assert (again.framing, again.length, again.upgrade) == (head.framing, head.length, head.upgrade)


def _asks_for_upgrade(head: RequestHead) -> bool:
    """Llhttp stops reading at any upgrade, also at one that we do not pass on."""
    return head.method == b"CONNECT" or any(name.lower() == b"upgrade" for name, _ in head.headers)


def _response(wire: bytes, pattern: int) -> None:
    method = _METHODS[pattern >> 1 & 1]
    asked = b"websocket" if pattern & 4 else b""
    case = Case("", "response", "", Unfinished(), wire, method=method, asked=asked)
    verdict = _the_same_in_pieces(case, pattern)
    try:
        head = parse_response(wire, method, LIMITS, upgrade=asked)
    except MalformedError:
        assert isinstance(verdict, Refused)
        return
    if head is None:
        assert isinstance(verdict, Unfinished)
        return
    _check_response(head, method)
    if (
        head.status < 600 and head.status != 101
    ):  # h11 knows no others, and no upgrade that it did not ask for
        ended = head.framing is Framing.UNTIL_CLOSE
        _agrees(verdict, h11_reads(wire, method=method, ended=ended), head)


def _check_response(head: ResponseHead, method: bytes) -> None:
    wire = render_response(head.status, head.reason, forward_response_headers(head))
    again = parse_response(wire, method, LIMITS, upgrade=head.upgrade)
    assert again is not None
    assert (again.status, again.reason, again.upgrade) == (head.status, head.reason, head.upgrade)
    assert (again.framing, again.length) == (head.framing, head.length)


def _agrees(verdict: Verdict, heard: Heard | None, head: RequestHead | ResponseHead) -> None:
    """What we accept, an oracle accepts, and reads in the same way."""
    if isinstance(verdict, Refused):  # by a fault in the body, which the oracles need not see
        return
    assert heard is not None, "we are laxer"
    start = (head.method, head.target) if isinstance(head, RequestHead) else (head.status, head.reason)
    assert heard.start == start
    values = [(name.lower(), value.lower()) for name, value in head.headers]
    assert [(name, value.lower()) for name, value in heard.headers] == values
    if isinstance(verdict, Accepted):
        assert heard.payload == verdict.payload
        assert heard.done


def chunks(data: bytes) -> None:
    """A chunked body."""
    pattern, wire = _split_off(data)
    verdict = _the_same_in_pieces(_case("chunked", wire), pattern)
    if isinstance(verdict, Accepted):
        head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        for heard in (h11_reads(head + wire), llhttp_reads(head + wire)):
            assert heard is not None, "we are laxer"
            assert (heard.payload, heard.done) == (verdict.payload, True)


def conversation(data: bytes) -> None:
    """Request after request on one connection: where one ends, the next begins, however they were split."""
    pattern, wire = _split_off(data)
    whole, split = list(_messages([wire])), list(_messages(_pieces(wire, pattern)))
    if whole and isinstance(whole[-1], Refused) and split and isinstance(split[-1], Unfinished):
        whole.pop()  # the peer left before the fault was looked at
        split.pop()
    assert whole == split


def _messages(pieces: list[bytes]) -> Iterator[Verdict]:
    while pieces:
        verdict, rest = read(_case("request", b""), pieces)
        yield verdict
        pieces = [rest] if rest and isinstance(verdict, Accepted) else []


def hello(data: bytes) -> None:
    """The first bytes of a client that should speak TLS: an alert, more to wait for, or a ServerHello."""
    pattern, wire = _split_off(data)
    session = TLSSession(_context(), server_side=True, server_hostname=None)
    with suppress(TLSError):
        for piece in _pieces(wire, pattern):
            assert session.handshake(piece) is False  # nobody finishes a handshake without our key share
    assert session.output()[:1] in {b"", b"\x15", b"\x16"}


@functools.cache
def _context() -> object:
    return RunCA.generate("run_fuzz").server_context("api.example")


TARGETS: dict[str, Callable[[bytes], None]] = {
    "connect": connect,
    "heads": heads,
    "chunks": chunks,
    "conversation": conversation,
    "hello": hello,
    "h2_client": h2_client,
    "h2_server": h2_server,
}


def _case(reads: str, wire: bytes) -> Case:
    return Case("", reads, "", Unfinished(), wire)


def _split_off(data: bytes) -> tuple[int, bytes]:
    return (data[0], data[1:]) if data else (0, b"")


def _pieces(wire: bytes, pattern: int) -> list[bytes]:
    """Cut by the pattern: byte by byte, or into pieces of its size."""
    size = pattern >> 3 or 1
    return [wire[at : at + size] for at in range(0, len(wire), size)] or [b""]


def _the_same_in_pieces(case: Case, pattern: int) -> Verdict:
    whole = read(case, [case.wire])
    pieces = read(case, _pieces(case.wire, pattern))
    # What drips in is looked at once a line is complete: the client may leave before.
    assert pieces == whole or (isinstance(whole[0], Refused) and isinstance(pieces[0], Unfinished))
    return whole[0]
