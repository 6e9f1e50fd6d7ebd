"""HTTP/2 field lists as HTTP/1.1 bytes, and back. Sans-IO, strict (RFC 9113 §8).

What comes in as HTTP/2 is written as HTTP/1.1 and then read by `http1`, so that one grammar decides what a
request is. Here is refused what could be written in two ways, or could not be written at all; nothing is
repaired. Faults are MalformedErrors: of one stream, not of its connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NoReturn

from moat.dataclass import dataclass
from moat.proxy import grammar
from moat.proxy.answers import reason_phrase
from moat.proxy.fields import Headers
from moat.proxy.head import Blame, Framing, MalformedError, RequestHead, ResponseHead

Fields = Iterable[tuple[bytes, bytes]]

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]++")  # a token without capitals (§8.2.1)
# Without space around it.
_VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\x20-\x7e\x80-\xff\t]*+(?<![ \t]))?)?")
_VISIBLE = re.compile(rb"[\x21-\x7e]++")
_STATUS = re.compile(rb"[1-9][0-9][0-9]")
# §8.2.2; `te` may say `trailers`.
_CONNECTION = frozenset({
    b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"http2-settings",
})  # fmt: skip
_OF_REQUEST = frozenset({b":method", b":scheme", b":authority", b":path"})
_OF_RESPONSE = frozenset({b":status"})
_BODILESS = frozenset({204, 304})


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A head as HTTP/1.1 bytes, and how the body after it has to be written."""

    head: bytes
    chunked: bool
    length: int | None  # bytes of DATA that have been announced; None: any number
    status: int = 0  # of a response


# --- HTTP/2 to HTTP/1.1 --------------------------------------------------------------------------


def request(fields: Fields, *, scheme: str, ended: bool) -> Rewritten:
    """A request. `ended`: no DATA follows. Raises MalformedError (blame `client`)."""
    pseudo, regular = _split(fields, _OF_REQUEST, "client")
    method, authority = pseudo.get(b":method", b""), pseudo.get(b":authority", b"")
    if not grammar.TOKEN.fullmatch(method):
        _refuse("client", "bad-method", "`:method` is missing or not a token")
    hosts = [value for name, value in regular if name == b"host"]
    if not authority and len(hosts) == 1:
        authority = hosts[0]
    if not _VISIBLE.fullmatch(authority):
        _refuse("client", "bad-authority", "`:authority` is missing or holds a space or a non-ASCII byte")
    if any(host.lower() != authority.lower() for host in hosts):
        _refuse("client", "two-authorities", "`host` and `:authority` differ")
    target = _target(method, authority, pseudo, scheme)
    length = _length(regular, "client")
    if ended and length:
        _refuse("client", "body-length", "content-length announces a body, and none comes")
    chunked = not ended and length is None
    lines = [(b"host", authority), *(field for field in regular if field[0] != b"host")]
    if chunked:
        lines.append((b"transfer-encoding", b"chunked"))
    return Rewritten(_head(b"%b %b HTTP/1.1\r\n" % (method, target), lines), chunked, 0 if ended else length)


def response(fields: Fields, *, method: bytes, ended: bool) -> Rewritten:
    """A response, 1xx too. `method` is the request's. Raises MalformedError (blame `upstream`)."""
    pseudo, regular = _split(fields, _OF_RESPONSE, "upstream")
    if not _STATUS.fullmatch(pseudo.get(b":status", b"")):
        _refuse("upstream", "bad-status", "`:status` is missing or not three digits")
    status = int(pseudo[b":status"])
    if status == 101:
        _refuse("upstream", "unasked-upgrade", "101 does not exist in HTTP/2")
    length = _length(regular, "upstream")
    chunked = False
    if status < 200:
        return Rewritten(_status_line(status, regular), chunked=False, length=None, status=status)
    if method == b"HEAD" or status in _BODILESS:
        length = 0
    elif ended:
        if length:
            _refuse("upstream", "body-length", "content-length announces a body, and none comes")
        if length is None:
            regular.append((b"content-length", b"0"))
        length = 0
    elif length is None or _has_trailers(regular):
        # Trailers need chunks, and chunks have no length.
        chunked = True
        regular = [field for field in regular if field[0] != b"content-length"]
        regular.append((b"transfer-encoding", b"chunked"))
    regular.append((b"connection", b"close"))  # of this stream: nothing is to follow on it
    return Rewritten(_status_line(status, regular), chunked, length, status)


def trailers(fields: Fields, blame: Blame) -> bytes:
    """The end of a chunked body with trailer fields. Raises MalformedError."""
    _, regular = _split(fields, frozenset(), blame)
    return b"0\r\n" + b"".join(b"%b: %b\r\n" % field for field in regular) + b"\r\n"


# --- HTTP/1.1 to HTTP/2 --------------------------------------------------------------------------


def request_fields(head: RequestHead, scheme: str) -> list[tuple[bytes, bytes]]:
    """The field list of a request. `te: trailers` is ours to say: trailers are passed on."""
    return [
        (b":method", head.method),
        (b":scheme", scheme.encode()),
        (b":authority", head.host),
        (b":path", head.target),
        *_regular(head.headers),
        (b"te", b"trailers"),
    ]


def response_fields(head: ResponseHead) -> list[tuple[bytes, bytes]]:
    return [(b":status", b"%d" % head.status), *_regular(head.headers)]


def trailer_fields(fields: Headers) -> list[tuple[bytes, bytes]]:
    return _regular(fields)


def has_body(head: RequestHead | ResponseHead) -> bool:
    return head.framing is not Framing.NONE


def is_grpc(fields: Fields) -> bool:
    """Whether a call may be silent for as long as it likes, as gRPC's streams are."""
    return any(name == b"content-type" and value.startswith(b"application/grpc") for name, value in fields)


# --- parts ---------------------------------------------------------------------------------------


def _split(
    fields: Fields, known: frozenset[bytes], blame: Blame
) -> tuple[dict[bytes, bytes], list[tuple[bytes, bytes]]]:
    """Pseudo-header fields and the others, each checked by itself."""
    pseudo: dict[bytes, bytes] = {}
    regular: list[tuple[bytes, bytes]] = []
    for name, value in fields:
        if not _VALUE.fullmatch(value):
            _refuse(blame, "bad-value", "a field value holds a control byte, or has space around it")
        if name.startswith(b":"):
            if name not in known or name in pseudo or regular:
                _refuse(blame, "bad-pseudo", "a pseudo-header field is unknown, doubled or out of place")
            pseudo[name] = value
            continue
        if not _NAME.fullmatch(name):
            _refuse(blame, "bad-name", "a field name is not a lower-case token")
        if name in _CONNECTION or (name == b"te" and value.lower() != b"trailers"):
            _refuse(blame, "connection-field", f"`{name.decode()}` does not exist in HTTP/2")
        regular.append((name, value))
    return pseudo, regular


def _target(method: bytes, authority: bytes, pseudo: dict[bytes, bytes], scheme: str) -> bytes:
    path = pseudo.get(b":path", b"")
    if method == b"CONNECT":
        if b":path" in pseudo or b":scheme" in pseudo:
            _refuse("client", "bad-pseudo", "CONNECT has neither `:scheme` nor `:path`")
        return authority
    if pseudo.get(b":scheme") != scheme.encode():
        _refuse("client", "bad-scheme", f"`:scheme` is not {scheme}")
    if not _VISIBLE.fullmatch(path) or not (path.startswith(b"/") or (path == b"*" and method == b"OPTIONS")):
        _refuse("client", "bad-target", "`:path` is not a path of visible ASCII")
    return path


def _length(regular: list[tuple[bytes, bytes]], blame: Blame) -> int | None:
    lengths = [value for name, value in regular if name == b"content-length"]
    if not lengths:
        return None
    if len(lengths) > 1:
        _refuse(blame, "duplicate-length", "more than one content-length")
    if not grammar.DIGITS.fullmatch(lengths[0]):
        _refuse(blame, "bad-length", "content-length is not a plain decimal number")
    return int(lengths[0])


def _has_trailers(regular: list[tuple[bytes, bytes]]) -> bool:
    return is_grpc(regular) or any(name == b"trailer" for name, _ in regular)


def _status_line(status: int, lines: Fields) -> bytes:
    return _head(b"HTTP/1.1 %d %b\r\n" % (status, reason_phrase(status)), lines)


def _head(start: bytes, lines: Fields) -> bytes:
    return start + b"".join(b"%b: %b\r\n" % field for field in lines) + b"\r\n"


def _regular(headers: Headers) -> list[tuple[bytes, bytes]]:
    lowered = [(name.lower(), value) for name, value in headers]
    return [field for field in lowered if field[0] not in _CONNECTION and field[0] not in {b"host", b"te"}]


def _refuse(blame: Blame, code: str, reason: str) -> NoReturn:
    raise MalformedError(code, reason, 400 if blame == "client" else 502, blame)
