"""Two other readers of HTTP/1.1: h11, and llhttp by way of httptools. What they say of a message.

Each gives None when it refuses the bytes, else what it has understood so far.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import h11
import httptools

Fields = list[tuple[bytes, bytes]]


@dataclass
class Heard:
    """A message as an oracle reads it. Names of fields are in lower case, values without white space."""

    start: tuple[bytes, bytes] | tuple[int, bytes] | None = None  # method, target; or status, reason
    headers: Fields = field(default_factory=list)
    payload: bytes = b""
    done: bool = False  # the message has ended
    keep_alive: bool = False


def h11_reads(
    wire: bytes, *, method: bytes | None = None, asked: bytes = b"", ended: bool = False
) -> Heard | None:
    """h11's reading of a request, or of a response to `method`. `ended`: nothing follows.

    `asked`: the protocol that the request wanted to upgrade to.
    """
    connection = h11.Connection(h11.SERVER if method is None else h11.CLIENT)
    if method is not None:
        upgrade = [(b"Connection", b"upgrade"), (b"Upgrade", asked)] if asked else []
        connection.send(h11.Request(method=method, target="/", headers=[(b"Host", b"a"), *upgrade]))
        connection.send(h11.EndOfMessage())
    heard = Heard()
    try:
        connection.receive_data(wire)
        if ended:
            connection.receive_data(b"")
        while not heard.done:
            event = connection.next_event()
            match event:
                case h11.Request():
                    heard.start, heard.headers = (event.method, event.target), list(event.headers)
                case h11.InformationalResponse() | h11.Response():
                    heard.start, heard.headers = (event.status_code, event.reason), list(event.headers)
                    heard.done = isinstance(event, h11.InformationalResponse)
                case h11.Data():
                    heard.payload += bytes(event.data)
                case h11.EndOfMessage():
                    heard.done = True
                case _:
                    break
    except h11.RemoteProtocolError:
        return None
    heard.keep_alive = connection.their_state is not h11.MUST_CLOSE
    return heard


class _Listener:
    """The callbacks of httptools. A message is over when the first one is."""

    def __init__(self) -> None:
        self.heard = Heard()
        self.target = self.reason = b""
        self.complete = False
        self.parser: Any = None

    def on_url(self, url: bytes) -> None:
        self.target += b"" if self.heard.done else url

    def on_status(self, status: bytes) -> None:
        self.reason += b"" if self.heard.done else status

    def on_header(self, key: bytes, val: bytes) -> None:
        if not self.complete:  # afterwards it is a trailer
            self.heard.headers.append((key.lower(), val.strip(b" \t")))

    def on_headers_complete(self) -> None:
        if not self.heard.done:
            self.complete = True
            self.heard.start = self.start()
            self.heard.keep_alive = self.parser.should_keep_alive()

    def start(self) -> tuple[bytes, bytes] | tuple[int, bytes]:
        if isinstance(self.parser, httptools.HttpResponseParser):
            return self.parser.get_status_code(), self.reason
        return self.parser.get_method(), self.target

    def on_body(self, body: bytes) -> None:
        self.heard.payload += b"" if self.heard.done else body

    def on_message_complete(self) -> None:
        self.heard.done = True


def llhttp_reads(wire: bytes, *, response: bool = False) -> Heard | None:
    """Llhttp's reading of a request, or of a response to GET: it cannot be told what was asked."""
    listener = _Listener()
    make = httptools.HttpResponseParser if response else httptools.HttpRequestParser
    listener.parser = make(listener)
    try:
        listener.parser.feed_data(wire)
    except httptools.HttpParserUpgrade:
        listener.heard.done = True
    except httptools.HttpParserError:
        if not listener.heard.done:  # it has stopped at what follows the message
            return None
    return listener.heard
