"""Words for a head that the grammar does not match: what is wrong, and as early as it can be told.

The slow path of `http1`; only faults may enter this file.
"""

from __future__ import annotations

from dataclasses import dataclass

from moat.proxy import grammar
from moat.proxy.limits import Limits

_START_LINE_EXTRA = 64  # method, version and spaces around the target


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a head: stable code, words, and the status for a client that sent it."""

    code: str
    reason: str
    status: int = 400


def unfinished(buffer: bytes | bytearray, limits: Limits, *, request: bool) -> Fault | None:
    """The fault of a buffer that holds no head of the grammar; None when a head may still come.

    Incomplete heads are looked at too: a client that speaks TLS, SSH or bare LFs never sends the end.
    """
    end = buffer.find(b"\r\n\r\n", 0, limits.head)
    if end >= 0:
        return _complete(bytes(buffer[: end + 2]), request=request)
    if len(buffer) >= limits.head:
        return Fault("head-too-large", f"the head is larger than {limits.head} bytes", 431)
    text = bytes(buffer).removeprefix(b"\r\n") if request else bytes(buffer)
    if _odd_bytes(text) and (fault := _byte_fault(text)):
        return fault
    line, ended, _ = text.partition(b"\r\n")
    if ended:
        return _start_line_fault(line, request=request)
    if len(line) > limits.target + _START_LINE_EXTRA:
        return Fault("target-too-long", f"the start line is longer than {limits.target} bytes", 414)
    return None


def _complete(head: bytes, *, request: bool) -> Fault:
    message = head.removeprefix(b"\r\n") if request else head
    start, *lines = message.removesuffix(b"\r\n").split(b"\r\n")
    if not start and request:
        return Fault("empty-lines", "more than one empty line before the message")
    fault = _byte_fault(head) or _start_line_fault(start, request=request)
    for line in lines:
        fault = fault or _field_fault(line)
    return fault or Fault("malformed-head", "the head is not HTTP/1.1")


def _start_line_fault(line: bytes, *, request: bool) -> Fault | None:
    return _request_line_fault(line) if request else _status_line_fault(line)


def _odd_bytes(text: bytes | bytearray) -> bool:
    """Whether text holds a NUL or a line end that is not CRLF. At memchr speed: runs on every read."""
    ends = text.count(b"\r\n")
    returns = text.count(b"\r") - text.endswith(b"\r")
    return text.count(b"\n") != ends or returns != ends or b"\x00" in text


def _byte_fault(text: bytes) -> Fault | None:
    """A byte that may stand nowhere in a head. A CR at the very end may still become CRLF."""
    if b"\x00" in text:
        return Fault("nul", "a NUL byte in the head")
    if grammar.BARE_LF.search(text):
        return Fault("bare-lf", "a line ends in LF without CR")
    if grammar.BARE_CR.search(text.removesuffix(b"\r")):
        return Fault("bare-cr", "a CR without LF")
    if grammar.CONTROL.search(text):
        return Fault("control-byte", "a control byte in the head")
    return None


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
