"""HTTP/1.1 heads, strict and sans-IO: bytes in, frozen values out (RFC 9110, RFC 9112).

No await, no socket, no clock may enter this file. Chunked bodies are in `chunked`, patterns in `grammar`.
Whatever two servers could read in two ways is refused, never repaired.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import Enum
from functools import lru_cache
from typing import Literal, NamedTuple, NoReturn

from moat.errors import MoatError
from moat.proxy import diagnosis, grammar
from moat.proxy.limits import Limits

Headers = tuple[tuple[bytes, bytes], ...]
Buffer = bytes | bytearray
Blame = Literal["client", "upstream"]

_MAX_LENGTH = 2**63 - 1  # what every other parser's signed 64-bit integer holds
# Never hop-by-hop, whatever Connection says.
_FRAMED = frozenset({b"host", b"content-length", b"transfer-encoding"})
# CGI-style servers read `_` as `-`: these would be a second opinion on framing behind our back.
_LOOK_ALIKE = frozenset({b"content_length", b"transfer_encoding"})
# Of the fields that `grammar.SPECIAL` names, those that are the next hop's business too.
_ENCODED_BY = frozenset({b"content-encoding", b"grpc-encoding", b"connect-content-encoding"})
_END_TO_END = _ENCODED_BY | {b"host", b"content-length", b"content-type"}
_CONTENT_LENGTH = frozenset({b"content-length"})
_TE_CHUNKED = b"\r\nTransfer-Encoding: chunked"
_UPGRADE = b"\r\nConnection: Upgrade\r\nUpgrade: %b"
_CODINGS = frozenset({b"gzip", b"x-gzip", b"deflate", b"compress", b"x-compress", b"identity"})
_COMMON_OPTIONS = {
    value: frozenset({value.lower()}) for value in (b"keep-alive", b"Keep-Alive", b"close", b"Upgrade")
}
_NO_OPTIONS: frozenset[bytes] = frozenset()
_MEMORABLE = 4096  # bytes of a block of fields up to which what it means is remembered
_HARMLESS_OPTIONS = frozenset({b"", b"close", b"keep-alive", b"upgrade"})
# Upgrading to HTTP once more would carry requests past policy (h2c smuggling); TLS would hide them.
_HTTP_AGAIN = (b"h2", b"h3", b"http/", b"tls/")


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


def parse_request(buffer: Buffer, limits: Limits) -> RequestHead | None:
    """The request head at the start of `buffer`; None when more bytes are needed.

    Raises MalformedError (blame `client`) as soon as it can be told, also on an incomplete head.
    """
    start = grammar.REQUEST_START.match(buffer, 0, limits.head)
    end = buffer.find(b"\r\n\r\n", start.end(), limits.head) if start is not None else -1
    if start is None or end < 0:
        _unfinished(buffer, limits, "client")
        return None
    method, target, minor_digit = start.groups()
    minor = 1 if minor_digit == b"1" else 0
    block = bytes(buffer[start.end() : end])
    found = (_known_fields if len(block) <= _MEMORABLE else _request_fields)(block, minor, limits.fields)
    if found is None:
        _unfinished(buffer, limits, "client")
        return None
    read, kept = found
    framing = read.framing
    form = _form(method, target, framing, limits)
    upgrade = b""
    if minor and framing is NONE and b"upgrade" in read.options:
        upgrade = _upgrade(read.upgrade)
    expects = read.expect is not None and _expects_continue(read.expect, minor, framing)
    return RequestHead(
        method, target, form, minor, block, kept, read.host, framing, read.length, read.persists, expects,
        upgrade, end + 4,
    )  # fmt: skip


def parse_response(
    buffer: Buffer, request_method: bytes, limits: Limits, *, upgrade: bytes = b""
) -> ResponseHead | None:
    """The response head at the start of `buffer`; None when more bytes are needed.

    `upgrade` is the token that was asked for: a 101 for anything else is refused. Two Content-Length
    fields are refused even when they agree (RFC 9112 §6.3 would let us): a server that says it twice
    has passed its answer through something that may see the body's end elsewhere.
    Raises MalformedError (blame `upstream`, status 502).
    """
    match = grammar.RESPONSE.match(buffer, 0, limits.head)
    if match is None:
        _unfinished(buffer, limits, "upstream")
        return None
    minor_digit, code, reason, block = match.groups()
    minor = 1 if minor_digit == b"1" else 0
    status = int(code)
    read, kept = _read(block, minor, limits.fields, "upstream")
    framing, length = read.framing, read.length
    switched = b""
    if status < 200 or status == 204:
        if framing is not NONE:
            _refuse("upstream", "body-forbidden", f"a {status} response announces a body")
        if status == 101:
            switched = _switched(read, upgrade)
    elif request_method == b"HEAD" or status == 304:
        framing, length = NONE, 0
    elif framing is NONE and not read.measured:
        framing = UNTIL_CLOSE
    return ResponseHead(
        status, reason or b"", minor, block, kept, framing, length, read.measured, read.content_type,
        read.encoded, read.persists and framing is not UNTIL_CLOSE, switched, match.end(),
    )  # fmt: skip


def split_absolute(target: bytes) -> tuple[bytes, bytes, bytes]:
    """Scheme (lower case), authority and origin-form of an absolute-form target (`http://h/p?q`)."""
    match = grammar.ABSOLUTE.fullmatch(target)
    if match is None:
        _refuse("client", "bad-target-form", "the request target is not an http or https URL")
    scheme, authority, path = match.groups()
    if not path:
        path = b"/"
    elif path[:1] == b"?":
        path = b"/" + path
    return scheme.lower(), authority, path


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


def split_fields(block: bytes) -> Headers:
    """The fields of a block that the grammar has matched; values without white space around them."""
    fields = grammar.FIELD.findall(block)
    if b" \r" in block or b"\t\r" in block or block.endswith((b" ", b"\t")):
        return tuple([(name, value.rstrip(b" \t")) for name, value in fields])
    return tuple(fields)


def join_fields(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The reverse of `split_fields`. Raises ValueError when a field would break out of its line."""
    lines = [b"\r\n%b: %b" % field for field in headers]
    block = b"".join(lines)
    # An injected credential or a rewritten field with a line end in it would be a request of its own.
    if block.count(b"\n") != len(lines) or block.count(b"\r") != len(lines) or b"\x00" in block:
        raise ValueError("a header field holds a line end or a NUL")
    return block


def without(block: bytes, names: Collection[bytes]) -> bytes:
    """A block of fields without those with one of the (lower-case) names."""
    return join_fields(field for field in split_fields(block) if field[0].lower() not in names)


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
    if b"\r" in start or b"\n" in start or b"\x00" in start:
        raise ValueError("a start line holds a line end or a NUL")
    return start


def _refuse(blame: Blame, code: str, reason: str, status: int = 400) -> NoReturn:
    raise MalformedError(code, reason, status if blame == "client" else 502, blame)


def _unfinished(buffer: Buffer, limits: Limits, blame: Blame) -> None:
    """Return when a head may still come; raise the fault that forbids it."""
    fault = diagnosis.unfinished(buffer, limits, request=blame == "client")
    if fault is not None:
        _refuse(blame, fault.code, fault.reason, fault.status)


_Values = dict[bytes, bytes]
"""The fields that a proxy reads, by lower-case name; those of a name that is there twice joined by `,`."""


class _Read(NamedTuple):
    """What a proxy reads of a head: it depends on the fields that `grammar.SPECIAL` names and no others."""

    kept: list[bytes]  # in place of each of their names: the field, when it goes on to the next hop
    dropped: list[bytes]  # in place of each of their values: b""
    host: bytes
    options: frozenset[bytes]
    framing: Framing
    length: int
    measured: bool
    persists: bool  # the connection does, as far as the head tells
    content_type: bytes
    encoded: bool
    upgrade: bytes
    expect: bytes | None
    nominated: frozenset[bytes]  # further names that Connection makes hop-by-hop


def _request_fields(block: bytes, minor: int, limit: int) -> tuple[_Read, bytes] | None:
    """`_read` of a request's fields; None when they are not such."""
    return _read(block, minor, limit, "client") if grammar.FIELDS.fullmatch(block) else None


_known_fields = lru_cache(maxsize=64)(_request_fields)  # clients send the same ones again


def _read(block: bytes, minor: int, limit: int, blame: Blame) -> tuple[_Read, bytes]:
    """What is to be read in a block of fields, and those of them that go on to the next hop."""
    if block.count(b"\r\n") > limit:
        _refuse(blame, "too-many-fields", f"more than {limit} header fields", 431)
    pieces = grammar.SPECIAL.split(block)  # others, name, value, others, name, value, … others
    names, values = pieces[1::3], pieces[2::3]
    meaning = _meaning if len(block) <= _MEMORABLE else _meaning.__wrapped__
    read = meaning((*names, *values), minor, blame)
    pieces[1::3], pieces[2::3] = read.kept, read.dropped
    kept = b"".join(pieces)
    return read, without(kept, read.nominated) if read.nominated else kept


@lru_cache(maxsize=256)  # peers repeat themselves: it is always the same few
def _meaning(special: tuple[bytes, ...], minor: int, blame: Blame) -> _Read:
    """Of the names and then the values, as sent, of the fields that a proxy reads."""
    half = len(special) // 2
    values: _Values = {}
    repeated: set[bytes] = set()
    kept: list[bytes] = []
    for name, sent in zip(special[:half], special[half:], strict=True):
        key, value = name.lower(), sent.rstrip(b" \t")
        if key in _LOOK_ALIKE:
            reason = f"`{key.decode()}` would be read as a framing header by some servers"
            _refuse(blame, "look-alike", reason)
        if key in values:
            values[key] += b"," + value
            repeated.add(key)
        else:
            values[key] = value
        if key == b"content-length":  # leading zeros: some servers take them for octal
            value = value.lstrip(b"0") or value[-1:]
        kept.append(b"\r\n%b: %b" % (name, value) if key in _END_TO_END else b"")
    host = _host(values, repeated, minor) if blame == "client" else b""
    options = _options(values, blame) if b"connection" in values else _NO_OPTIONS
    framing, length = _framing(values, repeated, minor, blame)
    nominated = _NO_OPTIONS if options <= _HARMLESS_OPTIONS else options
    return _Read(
        kept, [b""] * half, host, options, framing, length,
        measured=b"content-length" in values,
        persists=minor == 1 and b"close" not in options,  # no proxy keeps 1.0 (RFC 9112 §9.3)
        content_type=_media_type(values),
        encoded=not _ENCODED_BY.isdisjoint(values),
        upgrade=values.get(b"upgrade", b""),
        expect=values.get(b"expect"),
        nominated=nominated,
    )  # fmt: skip


def _media_type(values: dict[bytes, bytes]) -> bytes:
    value = values.get(b"content-type")
    return value.partition(b";")[0].rstrip(b" \t").lower() if value else b""


def _host(values: _Values, repeated: Collection[bytes], minor: int) -> bytes:
    if b"host" in repeated:
        _refuse("client", "duplicate-host", "more than one Host header")
    host = values.get(b"host", b"")
    if not host and (minor or b"host" in values):
        _refuse("client", "missing-host", "no Host header")
    return host


def _options(values: _Values, blame: Blame) -> frozenset[bytes]:
    value = values[b"connection"]
    if (common := _COMMON_OPTIONS.get(value)) is not None:
        return common
    options = frozenset(option.strip(b" \t") for option in value.lower().split(b","))
    for name in _FRAMED & options:  # would drop the framing or the authority at the next hop
        _refuse(blame, "bad-connection", f"Connection names `{name.decode()}`")
    return options


def _framing(values: _Values, repeated: Collection[bytes], minor: int, blame: Blame) -> tuple[Framing, int]:
    """Framing by RFC 9112 §6.3, without its tolerances: each pair of readings is a smuggled request."""
    if b"transfer-encoding" in values:
        if b"content-length" in values:
            _refuse(blame, "length-and-chunked", "both Content-Length and Transfer-Encoding")
        if minor == 0:
            _refuse(blame, "chunked-http10", "Transfer-Encoding in an HTTP/1.0 message")
        if b"transfer-encoding" in repeated:
            _refuse(blame, "duplicate-transfer-encoding", "more than one Transfer-Encoding header")
        _only_chunked(values[b"transfer-encoding"], blame)
        return CHUNKED, 0
    value = values.get(b"content-length")
    if value is None:
        return NONE, 0
    if b"content-length" in repeated:
        _refuse(blame, "duplicate-length", "more than one Content-Length header")
    length = int(value) if grammar.DIGITS.fullmatch(value) else -1
    if not 0 <= length <= _MAX_LENGTH:
        _refuse(blame, "bad-length", "Content-Length is not a plain decimal number below 2^63")
    return (LENGTH, length) if length else (NONE, 0)


def _only_chunked(value: bytes, blame: Blame) -> None:
    """Accept `Transfer-Encoding: chunked` and nothing else."""
    names = [name.strip(b" \t") for name in value.lower().split(b",")]
    if names == [b"chunked"]:
        return
    understood = names[-1] == b"chunked" and _CODINGS.issuperset(names[:-1])
    reason = "Transfer-Encoding is not exactly `chunked`"
    _refuse(blame, "bad-transfer-encoding", reason, 501 if understood else 400)


def _form(method: bytes, target: bytes, framing: Framing, limits: Limits) -> Form:
    if len(method) > limits.method:
        _refuse("client", "bad-method", f"the method is longer than {limits.method} bytes")
    if len(target) > limits.target:
        _refuse("client", "target-too-long", f"the target is longer than {limits.target} bytes", 414)
    if method == b"CONNECT":
        if framing is not NONE:
            _refuse("client", "connect-body", "CONNECT with a body")
        if grammar.AUTHORITY.fullmatch(target):
            return Form.AUTHORITY
    elif method == b"TRACE":  # its answer would be the request, injected credential included
        _refuse("client", "trace", "TRACE is not forwarded", 405)
    elif target[:1] == b"/":
        return ORIGIN
    elif target == b"*" and method == b"OPTIONS":
        return Form.ASTERISK
    elif grammar.ABSOLUTE.fullmatch(target):
        return Form.ABSOLUTE
    _refuse("client", "bad-target-form", "this method cannot have a target of this form")


def _expects_continue(expect: bytes, minor: int, framing: Framing) -> bool:
    """Whether the body waits for a 100. A list or anything else desynchronises servers behind us."""
    if minor == 0:
        return False
    if expect.lower() != b"100-continue":
        _refuse("client", "bad-expect", "Expect is not exactly `100-continue`", 417)
    return framing is not NONE


def _upgrade(token: bytes) -> bytes:
    """The one protocol that is asked for. Lists, and HTTP or TLS once more, are not passed on."""
    if not grammar.UPGRADE.fullmatch(token) or token.lower().startswith(_HTTP_AGAIN):
        return b""
    return token.lower()


def _switched(read: _Read, asked: bytes) -> bytes:
    if not asked or read.upgrade.lower() != asked or b"upgrade" not in read.options:
        _refuse("upstream", "unasked-upgrade", "a 101 response to a request that did not ask for it")
    return asked
