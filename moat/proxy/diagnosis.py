"""Words for a head that the grammar does not match: what is wrong, and as early as it can be told.

The slow path of `http1`; only faults may enter this file.
"""

from __future__ import annotations

from moat.dataclass import dataclass
from moat.proxy import grammar
from moat.proxy.limits import Limits

_START_LINE_EXTRA = 64  # method, version and spaces around the target


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a head: stable code, words, and the status for a client that sent it."""

    code: str
    reason: str
    status: int = 400


_ODD_BYTES = {
    b"\x00": Fault("nul", "a NUL byte in the head"),
    b"\n": Fault("bare-lf", "a line ends in LF without CR"),
    b"\r": Fault("bare-cr", "a CR without LF"),
}


def unfinished(buffer: bytes | bytearray, limits: Limits, *, request: bool) -> Fault | None:
    """The fault of a buffer that holds no head of the grammar; None when a head may still come.

    Incomplete heads are looked at too: a client that speaks TLS, SSH or bare LFs never sends the end. What
    is told first is what stands first, so that the verdict does not depend on how the bytes arrived.
    """
    text = bytes(buffer[: limits.head])
    end = text.find(b"\r\n\r\n")
    if request:
        if end == 0:
            return Fault("empty-lines", "more than one empty line before the message")
        text = text.removeprefix(b"\r\n")
        end = text.find(b"\r\n\r\n")
    if end >= 0:
        return _complete(text[: end + 2], request=request)
    line, ended, _ = text.partition(b"\r\n")
    fault = None
    if ended:
        fault = _start_line_fault(line, request=request)
    if fault is None and _odd_bytes(text):
        fault = _byte_fault(text)
    if fault is None and not ended and request:
        fault = _long_line_fault(line, limits)
    if fault is None and len(buffer) >= limits.head:
        return Fault("head-too-large", f"the head is larger than {limits.head} bytes", 431)
    return fault


def _complete(head: bytes, *, request: bool) -> Fault:
    start, *lines = head.removesuffix(b"\r\n").split(b"\r\n")
    fault = _start_line_fault(start, request=request) or _byte_fault(head)
    for line in lines:
        fault = fault or _field_fault(line)
    return fault or Fault("malformed-head", "the head is not HTTP/1.1")


def _long_line_fault(line: bytes, limits: Limits) -> Fault | None:
    """A request line whose end is overdue."""
    if len(line) <= limits.target + _START_LINE_EXTRA:
        return None
    if b" " not in line[: limits.method + 1]:
        return Fault("bad-method", f"the method is longer than {limits.method} bytes")
    return Fault("target-too-long", f"the target is longer than {limits.target} bytes", 414)


def _start_line_fault(line: bytes, *, request: bool) -> Fault | None:
    """What is wrong with a start line (without its CRLF)."""
    fault = _byte_fault(line + b"\r\n")
    return fault or (_request_line_fault(line) if request else _status_line_fault(line))


def _odd_bytes(text: bytes | bytearray) -> bool:
    """Whether text holds a NUL or a line end that is not CRLF. At memchr speed: runs on every read."""
    ends = text.count(b"\r\n")
    returns = text.count(b"\r") - text.endswith(b"\r")
    return text.count(b"\n") != ends or returns != ends or b"\x00" in text


def _byte_fault(text: bytes) -> Fault | None:
    """The first byte that may stand nowhere in a head. A CR at the very end may still become CRLF."""
    match = grammar.ODD.search(text)
    if match is None or (match[0] == b"\r" and match.end() == len(text)):
        return None
    return _ODD_BYTES.get(match[0]) or Fault("control-byte", "a control byte in the head")


def _request_line_fault(line: bytes) -> Fault | None:
    """What is wrong with a request line (without its CRLF)."""
    if grammar.REQUEST_LINE.fullmatch(line):
        return None
    method, _, rest = line.partition(b" ")
    target, space, version = rest.rpartition(b" ")
    if not grammar.TOKEN.fullmatch(method):
        return Fault("bad-method", "the method is not a token")
    if not space or not grammar.VERSION.fullmatch(version):
        return Fault("bad-request-line", "the request line is not `METHOD target HTTP/1.1`")
    if version not in {b"HTTP/1.0", b"HTTP/1.1"}:
        return Fault("bad-version", "only HTTP/1.1 and HTTP/1.0 are spoken here", 505)
    if b"#" in target:
        return Fault("fragment", "the request target has a fragment")
    return Fault("bad-target", "the request target is empty or holds a space or a non-ASCII byte")


def _status_line_fault(line: bytes) -> Fault | None:
    """What is wrong with a status line (without its CRLF)."""
    if grammar.STATUS_LINE.fullmatch(line):
        return None
    return Fault("bad-status-line", "the status line is not `HTTP/1.1 200 reason`")


def _field_fault(line: bytes) -> Fault | None:
    """What is wrong with a field line (without its CRLF)."""
    if grammar.FIELD_LINE.fullmatch(line):
        return None
    name, colon, _ = line.partition(b":")
    if line[:1] in {b" ", b"\t"}:
        return Fault("obs-fold", "a header line is folded")
    if not colon:
        return Fault("no-colon", "a header line has no colon")
    if not name:
        return Fault("empty-name", "a header has no name")
    if name[-1:] in {b" ", b"\t"}:
        return Fault("space-before-colon", "white space between a header name and its colon")
    if not grammar.TOKEN.fullmatch(name):
        return Fault("bad-name", "a header name holds a byte that is not allowed there")
    return Fault("bad-value", "a header value holds a control byte")
