"""HTTP/1.1 heads, strict and sans-IO: bytes in, frozen values out (RFC 9110, RFC 9112).

No await, no socket, no clock may enter this file. Chunked bodies are in `chunked`, patterns in `grammar`.
Whatever two servers could read in two ways is refused, never repaired.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from moat.errors import MoatError
from moat.proxy.limits import Limits

Headers = tuple[tuple[bytes, bytes], ...]
Buffer = bytes | bytearray


class Framing(Enum):
    """How the end of a body is known."""

    NONE = "none"  # no body bytes follow the head
    LENGTH = "length"  # exactly `length` bytes, at least one
    CHUNKED = "chunked"
    UNTIL_CLOSE = "until-close"  # responses only


class Form(Enum):
    """Shape of a request target (RFC 9112 §3.2)."""

    ORIGIN = "origin"  # /path?query
    ABSOLUTE = "absolute"  # http://host/path
    AUTHORITY = "authority"  # host:port, CONNECT only
    ASTERISK = "asterisk"  # *, OPTIONS only


class MalformedError(MoatError):
    """Bytes that are not HTTP/1.1 as this proxy accepts it. The connection cannot be used further.

    `code` is stable and machine-readable (`bare-lf`, `length-and-chunked`…), `reason` is for a person,
    `status` is what to answer the sandbox: 4xx/5xx for its own fault, 502 for the upstream's.
    """

    def __init__(self, code: str, reason: str, status: int, blame: Literal["client", "upstream"]) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.status = status
        self.blame = blame


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request head that is framed beyond doubt. `size` bytes of the buffer belong to it."""

    method: bytes  # as sent; tokens are case-sensitive
    target: bytes  # as sent: visible ASCII, no `#`
    form: Form
    minor: int  # 0 or 1
    headers: Headers  # names as sent, values without surrounding white space
    host: bytes  # the one Host field; b"" only when HTTP/1.0 sent none
    framing: Framing  # NONE, LENGTH or CHUNKED
    length: int  # body bytes when framing is LENGTH, else 0
    keep_alive: bool
    expect_continue: bool  # the client waits for `100 Continue` (and there is a body)
    upgrade: bytes  # lower-case protocol token the client asks to switch to, or b""
    size: int


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """A response head. A 1xx other than 101 is followed by another head."""

    status: int  # 100..999
    reason: bytes
    minor: int
    headers: Headers
    framing: Framing
    length: int
    keep_alive: bool  # the upstream connection can carry another request after the body
    upgrade: bytes  # lower-case token of a 101, else b""
    size: int


def parse_request(buffer: Buffer, limits: Limits) -> RequestHead | None:
    """The request head at the start of `buffer`; None when more bytes are needed.

    Raises MalformedError (blame `client`) as soon as it can be told, also on an incomplete head.
    """
    raise NotImplementedError


def parse_response(
    buffer: Buffer, request_method: bytes, limits: Limits, *, upgrade: bytes = b""
) -> ResponseHead | None:
    """The response head at the start of `buffer`; None when more bytes are needed.

    `upgrade` is the token that was asked for: a 101 for anything else is refused.
    Raises MalformedError (blame `upstream`, status 502).
    """
    raise NotImplementedError


def split_absolute(target: bytes) -> tuple[bytes, bytes, bytes]:
    """Scheme (lower case), authority and origin-form of an absolute-form target (`http://h/p?q`)."""
    raise NotImplementedError


def forward_request_headers(head: RequestHead) -> Headers:
    """Fields that go upstream: no hop-by-hop or Proxy-* field, framing written anew.

    Content-Length or `Transfer-Encoding: chunked` is appended as `head.framing` says, and
    `Connection: Upgrade` with `Upgrade` when `head.upgrade` asks for it. Host and Expect stay as sent.
    """
    raise NotImplementedError


def forward_response_headers(
    head: ResponseHead, *, framing: Framing | None = None, close: bool = False
) -> Headers:
    """Fields that go to the client: no hop-by-hop field, framing written anew.

    `framing` says how the body leaves here when that differs from how it came (re-chunked, decoded):
    LENGTH keeps the upstream's Content-Length, CHUNKED writes Transfer-Encoding, UNTIL_CLOSE neither.
    A bodiless answer to HEAD and a 304 keep their Content-Length. `close` appends `Connection: close`.
    """
    raise NotImplementedError


def render_request(method: bytes, target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A request head on the wire. Raises ValueError when a field would break out of its line."""
    raise NotImplementedError


def render_response(status: int, reason: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A response head on the wire. Raises ValueError when a field would break out of its line."""
    raise NotImplementedError
