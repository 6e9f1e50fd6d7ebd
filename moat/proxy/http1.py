"""HTTP/1.1 heads, strict and sans-IO: bytes in, frozen values out (RFC 9110, RFC 9112).

No await, no socket, no clock may enter this file. Chunked bodies are in `chunked`, patterns in `grammar`.
Whatever two servers could read in two ways is refused, never repaired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal, NoReturn

from moat.errors import MoatError
from moat.proxy import diagnosis, grammar
from moat.proxy.limits import Limits

Headers = tuple[tuple[bytes, bytes], ...]
Buffer = bytes | bytearray
Blame = Literal["client", "upstream"]

_MAX_LENGTH = 2**63 - 1  # what every other parser's signed 64-bit integer holds
_FRAMED = (b"host", b"content-length", b"transfer-encoding")  # never hop-by-hop, whatever Connection says
# CGI-style servers read `_` as `-`: these would be a second opinion on framing behind our back.
_LOOK_ALIKE = frozenset({b"content_length", b"transfer_encoding"})
_SPECIAL = _LOOK_ALIKE | {*_FRAMED, b"connection", b"expect", b"upgrade"}
_HOP_BY_HOP = frozenset({
    b"connection", b"proxy-connection", b"keep-alive", b"te", b"trailer", b"upgrade", b"http2-settings",
    b"transfer-encoding", b"proxy-authenticate", b"proxy-authorization", b"proxy-authentication-info",
})  # fmt: skip
_CODINGS = frozenset({b"gzip", b"x-gzip", b"deflate", b"compress", b"x-compress", b"identity"})
_COMMON_OPTIONS = {
    value: frozenset({value.lower()}) for value in (b"keep-alive", b"Keep-Alive", b"close", b"Upgrade")
}
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
    match = grammar.REQUEST.match(buffer, 0, limits.head)
    if match is None:
        _unfinished(buffer, limits, "client")
        return None
    method, target, minor_digit, block = match.groups()
    minor = 1 if minor_digit == b"1" else 0
    headers = _fields(block, limits, "client")
    special = _special(headers, "client")
    host = _host(special, minor)
    options = _options(special, "client")
    framing, length = _framing(special, minor, "client")
    form = _form(method, target, framing, limits)
    upgrade = b""
    if minor and framing is Framing.NONE and b"upgrade" in options:
        upgrade = _upgrade(special)
    # A proxy must not keep an HTTP/1.0 client's connection (RFC 9112 §9.3).
    keep_alive = minor == 1 and b"close" not in options
    expects = _expects_continue(special, minor, framing)
    return RequestHead(
        method, target, form, minor, headers, host, framing, length, keep_alive, expects, upgrade, match.end()
    )


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
    headers = _fields(block, limits, "upstream")
    special = _special(headers, "upstream")
    options = _options(special, "upstream")
    framing, length = _framing(special, minor, "upstream")
    switched = b""
    if status < 200 or status == 204:
        if framing is not Framing.NONE:
            _refuse("upstream", "body-forbidden", f"a {status} response announces a body")
        if status == 101:
            switched = _switched(special, options, upgrade)
    elif request_method == b"HEAD" or status == 304:
        framing, length = Framing.NONE, 0
    elif framing is Framing.NONE and b"content-length" not in special:
        framing = Framing.UNTIL_CLOSE
    keep_alive = minor == 1 and framing is not Framing.UNTIL_CLOSE and b"close" not in options
    return ResponseHead(
        status, reason or b"", minor, headers, framing, length, keep_alive, switched, match.end()
    )


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


def forward_request_headers(head: RequestHead) -> Headers:
    """Fields that go upstream: no hop-by-hop or Proxy-* field, framing written anew.

    Content-Length stays (leading zeros dropped), `Transfer-Encoding: chunked` is appended when the body is
    chunked, `Connection: Upgrade` with `Upgrade` when `head.upgrade` asks for it. Host stays as sent, Expect
    only when `head.expect_continue` says that it means something.
    """
    fields = _end_to_end(head.headers)
    if not head.expect_continue:
        fields = [field for field in fields if field[0].lower() != b"expect"]
    if head.framing is Framing.CHUNKED:
        fields.append((b"Transfer-Encoding", b"chunked"))
    if head.upgrade:
        fields += [(b"Connection", b"Upgrade"), (b"Upgrade", head.upgrade)]
    return tuple(fields)


def forward_response_headers(
    head: ResponseHead, *, framing: Framing | None = None, close: bool = False
) -> Headers:
    """Fields that go to the client: no hop-by-hop field, framing written anew.

    `framing` says how the body leaves here when that differs from how it came (re-chunked, decoded):
    LENGTH and NONE keep the upstream's Content-Length, CHUNKED writes Transfer-Encoding, UNTIL_CLOSE
    neither. A bodiless answer to HEAD and a 304 keep their Content-Length; a 1xx and a 204 have none
    (RFC 9110 §8.6). `close` appends `Connection: close`.
    """
    framing = framing or head.framing
    fields = _end_to_end(head.headers)
    if framing in {Framing.CHUNKED, Framing.UNTIL_CLOSE} or head.status < 200 or head.status == 204:
        fields = [field for field in fields if field[0].lower() != b"content-length"]
    if framing is Framing.CHUNKED:
        fields.append((b"Transfer-Encoding", b"chunked"))
    if head.upgrade:
        fields += [(b"Connection", b"Upgrade"), (b"Upgrade", head.upgrade)]
    elif close:
        fields.append((b"Connection", b"close"))
    return tuple(fields)


def render_request(method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A request head on the wire. Raises ValueError when a field would break out of its line."""
    return _render(b"%b %b HTTP/1.1\r\n" % (method, target), headers)


def render_response(status: int, reason: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A response head on the wire. Raises ValueError when a field would break out of its line."""
    return _render(b"HTTP/1.1 %d %b\r\n" % (status, reason), headers)


def connection_options(values: Sequence[bytes]) -> frozenset[bytes]:
    """The lower-case options of Connection fields."""
    if len(values) == 1 and (common := _COMMON_OPTIONS.get(values[0])):
        return common
    return frozenset(option.strip(b" \t") for option in b",".join(values).lower().split(b","))


def _render(start: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    lines = [b"%b: %b\r\n" % field for field in headers]
    head = b"%b%b\r\n" % (start, b"".join(lines))
    ends = len(lines) + 2
    # An injected credential or a rewritten field with a line end in it would be a request of its own.
    if head.count(b"\n") != ends or head.count(b"\r") != ends or b"\x00" in head:
        raise ValueError("a header field holds a line end or a NUL")
    return head


def _refuse(blame: Blame, code: str, reason: str, status: int = 400) -> NoReturn:
    raise MalformedError(code, reason, status if blame == "client" else 502, blame)


def _unfinished(buffer: Buffer, limits: Limits, blame: Blame) -> None:
    """Return when a head may still come; raise the fault that forbids it."""
    fault = diagnosis.unfinished(buffer, limits, request=blame == "client")
    if fault is not None:
        _refuse(blame, fault.code, fault.reason, fault.status)


def _fields(block: bytes, limits: Limits, blame: Blame) -> Headers:
    fields = grammar.FIELD.findall(block)
    if len(fields) > limits.fields:
        _refuse(blame, "too-many-fields", f"more than {limits.fields} header fields", 431)
    if b" \r" in block or b"\t\r" in block:
        return tuple([(name, value.rstrip(b" \t")) for name, value in fields])
    return tuple(fields)


def _special(headers: Headers, blame: Blame) -> dict[bytes, list[bytes]]:
    """The fields that decide framing and the connection, by lower-case name."""
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        key = name.lower()
        if key in _SPECIAL:
            found.setdefault(key, []).append(value)
    for name in _LOOK_ALIKE & found.keys():
        _refuse(blame, "look-alike", f"`{name.decode()}` would be read as a framing header by some servers")
    return found


def _host(special: dict[bytes, list[bytes]], minor: int) -> bytes:
    hosts = special.get(b"host", [])
    if len(hosts) > 1:
        _refuse("client", "duplicate-host", "more than one Host header")
    if not hosts and minor == 0:
        return b""
    if not hosts or not hosts[0]:
        _refuse("client", "missing-host", "no Host header")
    return hosts[0]


def _options(special: dict[bytes, list[bytes]], blame: Blame) -> frozenset[bytes]:
    options = connection_options(special.get(b"connection", ()))
    for name in _FRAMED:
        if name in options:  # would drop the framing or the authority at the next hop
            _refuse(blame, "bad-connection", f"Connection names `{name.decode()}`")
    return options


def _framing(special: dict[bytes, list[bytes]], minor: int, blame: Blame) -> tuple[Framing, int]:
    """Framing by RFC 9112 §6.3, without its tolerances: each pair of readings is a smuggled request."""
    codings = special.get(b"transfer-encoding")
    lengths = special.get(b"content-length")
    if codings is not None:
        if lengths is not None:
            _refuse(blame, "length-and-chunked", "both Content-Length and Transfer-Encoding")
        _chunked(codings, minor, blame)
        return Framing.CHUNKED, 0
    if lengths is None:
        return Framing.NONE, 0
    if len(lengths) > 1:
        _refuse(blame, "duplicate-length", "more than one Content-Length header")
    length = int(lengths[0]) if grammar.DIGITS.fullmatch(lengths[0]) else -1
    if not 0 <= length <= _MAX_LENGTH:
        _refuse(blame, "bad-length", "Content-Length is not a plain decimal number below 2^63")
    return (Framing.LENGTH, length) if length else (Framing.NONE, 0)


def _chunked(codings: list[bytes], minor: int, blame: Blame) -> None:
    """Accept `Transfer-Encoding: chunked` and nothing else."""
    if minor == 0:
        _refuse(blame, "chunked-http10", "Transfer-Encoding in an HTTP/1.0 message")
    if len(codings) > 1:
        _refuse(blame, "duplicate-transfer-encoding", "more than one Transfer-Encoding header")
    names = [name.strip(b" \t") for name in codings[0].lower().split(b",")]
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
        if framing is not Framing.NONE:
            _refuse("client", "connect-body", "CONNECT with a body")
        if grammar.AUTHORITY.fullmatch(target):
            return Form.AUTHORITY
    elif method == b"TRACE":  # its answer would be the request, injected credential included
        _refuse("client", "trace", "TRACE is not forwarded", 405)
    elif target[:1] == b"/":
        return Form.ORIGIN
    elif target == b"*" and method == b"OPTIONS":
        return Form.ASTERISK
    elif grammar.ABSOLUTE.fullmatch(target):
        return Form.ABSOLUTE
    _refuse("client", "bad-target-form", "this method cannot have a target of this form")


def _expects_continue(special: dict[bytes, list[bytes]], minor: int, framing: Framing) -> bool:
    """Whether the body waits for a 100. A list or anything else desynchronises servers behind us."""
    expect = special.get(b"expect")
    if expect is None or minor == 0:
        return False
    if len(expect) > 1 or expect[0].lower() != b"100-continue":
        _refuse("client", "bad-expect", "Expect is not exactly `100-continue`", 417)
    return framing is not Framing.NONE


def _upgrade(special: dict[bytes, list[bytes]]) -> bytes:
    """The one protocol that is asked for. Lists, and HTTP or TLS once more, are not passed on."""
    tokens = special.get(b"upgrade", [])
    if len(tokens) != 1 or not grammar.UPGRADE.fullmatch(tokens[0]):
        return b""
    token = tokens[0].lower()
    return b"" if token.startswith(_HTTP_AGAIN) else token


def _switched(special: dict[bytes, list[bytes]], options: frozenset[bytes], asked: bytes) -> bytes:
    tokens = [token.lower() for token in special.get(b"upgrade", [])]
    if not asked or tokens != [asked] or b"upgrade" not in options:
        _refuse("upstream", "unasked-upgrade", "a 101 response to a request that did not ask for it")
    return asked


def _end_to_end(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Fields without the hop-by-hop ones, also those that Connection nominates (RFC 9110 §7.6.1)."""
    fields = []
    options: list[bytes] = []
    for field in headers:
        name = field[0].lower()
        if name == b"connection":
            options.append(field[1])
        elif name == b"content-length":
            fields.append((field[0], field[1].lstrip(b"0") or b"0"))
        elif name not in _HOP_BY_HOP and not name.startswith(b"proxy-"):
            fields.append(field)
    nominated = connection_options(options)
    if nominated <= _HARMLESS_OPTIONS:
        return fields
    return [field for field in fields if field[0].lower() not in nominated]
