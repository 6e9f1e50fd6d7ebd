"""What the proxy itself answers. Pure: values in, bytes out.

A refusal is JSON that a person and a model can read; it is sent inside the tunnel, because no client
shows the text of a refused CONNECT (DESIGN §4).
"""

from __future__ import annotations

import json
from http import HTTPStatus

from moat.dataclass import dataclass
from moat.proxy.events import Denial
from moat.proxy.fields import Headers
from moat.proxy.head import MalformedError
from moat.proxy.render import render_response

ESTABLISHED = b"HTTP/1.1 200 Connection Established\r\n\r\n"
# Basic: git, curl and every SDK know it. Only TCP listeners with a token ever ask (DESIGN §4).
CHALLENGE: Headers = ((b"Proxy-Authenticate", b'Basic realm="moat"'), (b"Content-Length", b"0"))
_STATUS_OF_DENIAL = {"malformed": 400, "journal": 503, "limit": 503}  # anything else: 403


@dataclass(frozen=True, slots=True)
class Answer:
    """A response of the proxy's own; always the last one on its connection."""

    status: int
    headers: Headers
    body: bytes
    denial: Denial | None = None
    error: str = ""

    def wire(self, *, with_body: bool = True) -> bytes:
        """`with_body`: False answers a HEAD."""
        head = render_response(self.status, reason_phrase(self.status), self.headers)
        return head + self.body if with_body else head


class RefusedError(Exception):
    """Leaves the straight way of an exchange with an answer of our own."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def denied(denial: Denial, *, status: int = 0) -> Answer:
    """Refused on purpose. `x-should-retry` stops SDKs that would try eleven times, unless waiting helps."""
    status = status or (429 if denial.retry_after else _STATUS_OF_DENIAL.get(denial.code, 403))
    content: dict[str, str | int] = {
        "error": f"moat refused this request: {denial.reason}",
        "reason": denial.code,
        "rule": denial.rule,
        "hint": denial.hint,
    }
    extra: Headers = ((b"X-Moat-Denied", denial.code.encode()),)
    if denial.retry_after:
        content["retry_after"] = denial.retry_after
        extra += ((b"Retry-After", b"%d" % denial.retry_after),)
    else:
        extra += ((b"x-should-retry", b"false"),)
    return _answer(status, content, extra, denial=denial, error="")


def malformed(error: MalformedError) -> Answer:
    """The client's bytes were not HTTP as we accept it."""
    denial = Denial(code="malformed", reason=error.reason, rule=f"http: {error.code}")
    return denied(denial, status=error.status)


def failed(status: int, code: str, reason: str, hint: str = "", *, retry: bool = True) -> Answer:
    """The exchange was allowed and could not be done. `retry`: trying again may help."""
    content: dict[str, str | int] = {
        "error": f"moat could not do this request: {reason}",
        "reason": code,
        "hint": hint,
    }
    extra: Headers = ((b"X-Moat-Error", code.encode()),)
    if not retry:
        extra += ((b"x-should-retry", b"false"),)
    return _answer(status, content, extra, denial=None, error=reason)


def _answer(
    status: int, content: dict[str, str | int], extra: Headers, *, denial: Denial | None, error: str
) -> Answer:
    body = json.dumps(content, ensure_ascii=False).encode() + b"\n"
    headers = (
        (b"Content-Type", b"application/json"),
        (b"Content-Length", b"%d" % len(body)),
        *extra,
        (b"Connection", b"close"),
    )
    return Answer(status, headers, body, denial, error)


def reason_phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""
