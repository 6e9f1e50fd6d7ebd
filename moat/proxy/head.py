"""What the head of a message says, in frozen values; and how it is said that there is none."""

from __future__ import annotations

from enum import Enum
from typing import Literal, NamedTuple

from moat.errors import MoatError
from moat.proxy.fields import Headers, split_fields

Blame = Literal["client", "upstream"]


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


# Before Python 3.12 a member of an Enum costs ten times as much by its class as by a name.
NONE, LENGTH, CHUNKED, UNTIL_CLOSE = Framing
ORIGIN = Form.ORIGIN


class MalformedError(MoatError):
    """Bytes that are not HTTP/1.1 as this proxy accepts it. The connection cannot be used further.

    `code` is stable and machine-readable (`bare-lf`, `length-and-chunked`…), `reason` is for a person,
    `status` is what to answer the sandbox: 4xx/5xx for its own fault, 502 for the upstream's.
    """

    def __init__(self, code: str, reason: str, status: int, blame: Blame) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.status = status
        self.blame = blame


class RequestHead(NamedTuple):
    """A request head that is framed beyond doubt. `size` bytes of the buffer belong to it."""

    method: bytes  # as sent; tokens are case-sensitive
    target: bytes  # as sent: visible ASCII, no `#`
    form: Form
    minor: int  # 0 or 1
    block: bytes  # all header fields as sent, each with a CRLF before it
    kept: bytes  # those of them that go on to the next hop, whatever the framing; the same shape
    host: bytes  # the one Host field; b"" only when HTTP/1.0 sent none
    framing: Framing  # NONE, LENGTH or CHUNKED
    length: int  # body bytes when framing is LENGTH, else 0
    keep_alive: bool
    expect_continue: bool  # the client waits for `100 Continue` (and there is a body)
    upgrade: bytes  # lower-case protocol token the client asks to switch to, or b""
    size: int

    @property
    def headers(self) -> Headers:
        """Names as sent, values without surrounding white space. Taken apart anew each time."""
        return split_fields(self.block)


class ResponseHead(NamedTuple):
    """A response head. A 1xx other than 101 is followed by another head."""

    status: int  # 100..999
    reason: bytes
    minor: int
    block: bytes  # all header fields as sent, each with a CRLF before it
    kept: bytes  # those of them that go on to the next hop, whatever the framing; the same shape
    framing: Framing
    length: int
    measured: bool  # there is a Content-Length, which need not be the body's: HEAD, 304
    content_type: bytes  # the media type, lower case, without parameters; b"" when none is named
    encoded: bool  # a Content-Encoding is named, or one of messages inside the body
    keep_alive: bool  # the upstream connection can carry another request after the body
    upgrade: bytes  # lower-case token of a 101, else b""
    size: int

    @property
    def headers(self) -> Headers:
        """Names as sent, values without surrounding white space. Taken apart anew each time."""
        return split_fields(self.block)
