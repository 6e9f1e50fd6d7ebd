"""Heads on the wire: what goes on to the next hop, with the framing written anew.

No function here lets a field, a target or a reason break out of its line.
"""

from __future__ import annotations

from collections.abc import Iterable

from moat.proxy.fields import Headers, join_fields, split_fields, without
from moat.proxy.head import CHUNKED, UNTIL_CLOSE, Framing, RequestHead, ResponseHead

_CONTENT_LENGTH = frozenset({b"content-length"})
_TE_CHUNKED = b"\r\nTransfer-Encoding: chunked"
_UPGRADE = b"\r\nConnection: Upgrade\r\nUpgrade: %b"
_CR, _LF, _NUL = b"\r\n\x00"  # numbers: `in` is six times as quick as with bytes


def request_fields(head: RequestHead) -> bytes:
    """Fields that go upstream, as a block: no hop-by-hop or Proxy-* field, framing written anew.

    Content-Length stays (leading zeros dropped), `Transfer-Encoding: chunked` is appended when the body is
    chunked, `Connection: Upgrade` with `Upgrade` when `head.upgrade` asks for it, Expect when
    `head.expect_continue` says that it means something. All else stays as sent.
    """
    fields = head.kept
    if head.expect_continue:
        fields += b"\r\nExpect: 100-continue"
    if head.framing is CHUNKED:
        fields += _TE_CHUNKED
    if head.upgrade:
        fields += _UPGRADE % head.upgrade
    return fields


def response_fields(head: ResponseHead, *, framing: Framing | None = None, close: bool = False) -> bytes:
    """Fields that go to the client, as a block: no hop-by-hop field, framing written anew.

    `framing` says how the body leaves here when that differs from how it came (re-chunked, decoded):
    LENGTH and NONE keep the upstream's Content-Length, CHUNKED writes Transfer-Encoding, UNTIL_CLOSE
    neither. A bodiless answer to HEAD and a 304 keep their Content-Length; a 1xx and a 204 have none
    (RFC 9110 §8.6). `close` appends `Connection: close`.
    """
    framing = framing or head.framing
    fields = head.kept
    unmeasured = framing is CHUNKED or framing is UNTIL_CLOSE
    if head.measured and (unmeasured or head.status < 200 or head.status == 204):
        fields = without(fields, _CONTENT_LENGTH)
    if framing is CHUNKED:
        fields += _TE_CHUNKED
    if head.upgrade:
        fields += _UPGRADE % head.upgrade
    elif close:
        fields += b"\r\nConnection: close"
    return fields


def forward_request_headers(head: RequestHead) -> Headers:
    """`request_fields`, taken apart."""
    return split_fields(request_fields(head))


def forward_response_headers(
    head: ResponseHead, *, framing: Framing | None = None, close: bool = False
) -> Headers:
    """`response_fields`, taken apart."""
    return split_fields(response_fields(head, framing=framing, close=close))


def render_request(method: bytes, target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A request head on the wire. Raises ValueError when a field would break out of its line."""
    return request_wire(method, target, join_fields(headers))


def render_response(status: int, reason: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A response head on the wire. Raises ValueError when a field would break out of its line."""
    return response_wire(status, reason, join_fields(headers))


def request_wire(method: bytes, target: bytes, fields: bytes) -> bytes:
    """The same, of a block of fields that is known to be one."""
    return b"%b%b\r\n\r\n" % (_one_line(b"%b %b HTTP/1.1" % (method, target)), fields)


def response_wire(status: int, reason: bytes, fields: bytes) -> bytes:
    """The same, of a block of fields that is known to be one."""
    return b"%b%b\r\n\r\n" % (_one_line(b"HTTP/1.1 %d %b" % (status, reason)), fields)


def _one_line(start: bytes) -> bytes:
    if _CR in start or _LF in start or _NUL in start:
        raise ValueError("a start line holds a line end or a NUL")
    return start
