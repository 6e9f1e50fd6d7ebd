"""HTTP/1.1 heads, strict and sans-IO: bytes in, frozen values (`head`) out (RFC 9110, RFC 9112).

No await, no socket, no clock may enter this file. Chunked bodies are in `chunked`, patterns in `grammar`; how
a head goes on is in `render`.
Whatever two servers could read in two ways is refused, never repaired.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import NamedTuple, NoReturn

from moat.proxy import diagnosis, grammar
from moat.proxy.fields import without
from moat.proxy.head import (
    CHUNKED,
    LENGTH,
    NONE,
    ORIGIN,
    UNTIL_CLOSE,
    Blame,
    Form,
    Framing,
    MalformedError,
    RequestHead,
    ResponseHead,
)
from moat.proxy.limits import Limits

Buffer = bytes | bytearray

_MAX_LENGTH = 2**63 - 1  # what every other parser's signed 64-bit integer holds
# Never hop-by-hop, whatever Connection says.
_FRAMED = frozenset({b"host", b"content-length", b"transfer-encoding"})
# CGI-style servers read `_` as `-`: these would be a second opinion on framing behind our back.
_LOOK_ALIKE = frozenset({b"content_length", b"transfer_encoding"})
# Of the fields that `grammar.SPECIAL` names, those that are the next hop's business too.
_ENCODED_BY = frozenset({b"content-encoding", b"grpc-encoding", b"connect-content-encoding"})
_END_TO_END = _ENCODED_BY | {b"host", b"content-length", b"content-type"}
_CODINGS = frozenset({b"gzip", b"x-gzip", b"deflate", b"compress", b"x-compress", b"identity"})
_COMMON_OPTIONS = {
    value: frozenset({value.lower()}) for value in (b"keep-alive", b"Keep-Alive", b"close", b"Upgrade")
}
_NO_OPTIONS: frozenset[bytes] = frozenset()
_MEMORABLE = 4096  # bytes of a block of fields up to which what it means is remembered
_HARMLESS_OPTIONS = frozenset({b"", b"close", b"keep-alive", b"upgrade"})
# Upgrading to HTTP once more would carry requests past policy (h2c smuggling); TLS would hide them.
_HTTP_AGAIN = (b"h2", b"h3", b"http/", b"tls/")


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
