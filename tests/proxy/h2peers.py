"""HTTP/2 peers under a test's control: a client and an origin on blocking sockets, framed by the `h2` library.

Neither checks what it sends: they are as hostile as a test wants them to be.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Self

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    InformationalResponseReceived,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError
from hyperframe.frame import Frame

from tests.proxy.conftest import House
from tests.proxy.peers import Wire, client_context

Fields = Iterable[tuple[str, str]]


@dataclass
class Answer:
    """What came back on one stream so far."""

    status: int = 0
    interim: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)
    ended: bool = False
    reset: int | None = None  # error code


class Peer:
    """One side of a connection. With `hungry`, data is acknowledged as it comes."""

    def __init__(self, wire: Wire, *, client: bool, hungry: bool = True) -> None:
        self.wire = wire
        self.hungry = hungry
        self.h2 = H2Connection(
            H2Configuration(
                client_side=client,
                header_encoding="latin-1",
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
                validate_inbound_headers=False,
            )
        )
        self.goaway: ConnectionTerminated | None = None
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        if data := self.h2.data_to_send():
            self.wire.send(data)

    def frame(self, *frames: Frame) -> None:
        """Send frames as they are."""
        self.wire.send(b"".join(frame.serialize() for frame in frames))

    def receive(self) -> list[Event]:
        """What comes next; [] at the end of the connection."""
        events: list[Event] = []
        while not events and (data := self.wire.receive()):
            events = self._taken_in(data)
        return events

    def _taken_in(self, data: bytes) -> list[Event]:
        events = self.h2.receive_data(data)
        for event in events:
            if isinstance(event, DataReceived) and self.hungry and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if isinstance(event, ConnectionTerminated):
                self.goaway = event
        with contextlib.suppress(OSError):
            self.flush()
        return events

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Data, waiting for windows."""
        while data:
            size = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(data))
            if not size:
                assert self.receive(), "the connection ended"
                continue
            self.h2.send_data(stream, data[:size])
            data = data[size:]
            self.flush()
        if end:
            self.h2.end_stream(stream)
            self.flush()


class Client(Peer):
    """A client; answers are collected by stream."""

    def __init__(self, wire: Wire, *, hungry: bool = True) -> None:
        super().__init__(wire, client=True, hungry=hungry)
        self.answers: dict[int, Answer] = {}

    @classmethod
    def through(cls, house: House, host: str = "api.test", *, hungry: bool = True) -> Self:
        """By CONNECT through the proxy, over TLS that agreed on h2."""
        context = client_context(house.ca.certificate_pem)
        context.set_alpn_protocols(["h2", "http/1.1"])
        wire = house.tunnel(host, context=context)
        assert isinstance(wire.sock, ssl.SSLSocket)
        assert wire.sock.selected_alpn_protocol() == "h2"
        return cls(wire, hungry=hungry)

    def ask(
        self,
        *extra: tuple[str, str],
        path: str = "/",
        method: str = "GET",
        authority: str = "api.test",
        body: bytes | None = None,
        fields: Fields | None = None,
        end: bool = True,
    ) -> int:
        """Send a request; `fields` instead of the usual ones."""
        stream = self.h2.get_next_available_stream_id()
        usual = [(":method", method), (":scheme", "https"), (":authority", authority), (":path", path)]
        headers = [*(usual if fields is None else fields), *extra]
        self.h2.send_headers(stream, headers, end_stream=end and body is None)
        self.answers[stream] = Answer()
        self.flush()
        if body is not None:
            self.send(stream, body, end=end)
        return stream

    def receive(self) -> list[Event]:
        events = super().receive()
        for event in events:
            self._note(event)
        return events

    def _note(self, event: Event) -> None:
        answer = self.answers.get(getattr(event, "stream_id", None) or 0)
        if answer is None:
            return
        match event:
            case ResponseReceived():
                answer.headers = dict(event.headers)
                answer.status = int(answer.headers[":status"])
            case InformationalResponseReceived():
                answer.interim.append(int(dict(event.headers)[":status"]))
            case DataReceived():
                answer.body += event.data
            case TrailersReceived():
                answer.trailers = dict(event.headers)
            case StreamEnded():
                answer.ended = True
            case StreamReset():
                answer.reset = int(event.error_code)

    def until(self, stream: int, done: Callable[[Answer], bool] | None = None) -> Answer:
        """The answer, once it has ended, was reset, or is `done`, or the connection has ended."""
        answer = self.answers[stream]
        while not (answer.ended or answer.reset is not None or (done is not None and done(answer))):
            if not self.receive():
                break
        return answer

    def get(self, *extra: tuple[str, str], **options: object) -> Answer:
        return self.until(self.ask(*extra, **options))

    def drained(self) -> ConnectionTerminated | None:
        """Read until the connection ends; the GOAWAY that it ended with."""
        with contextlib.suppress(OSError, ProtocolError):  # also by streams that a test has made by hand
            while self.receive():
                pass
        return self.goaway

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wire.close()


@dataclass
class Request:
    """A request as an HTTP/2 origin sees it."""

    stream: int
    headers: list[tuple[str, str]]
    ended: bool = False
    body: bytes = b""

    def get(self, name: str) -> str | None:
        return dict(self.headers).get(name)


class Server(Peer):
    """The origin's side of a connection; used by scripts."""

    def __init__(self, wire: Wire, *, hungry: bool = True) -> None:
        super().__init__(wire, client=False, hungry=hungry)
        self.requests: dict[int, Request] = {}
        self.resets: dict[int, int] = {}

    def receive(self) -> list[Event]:
        events = super().receive()
        for event in events:
            match event:
                case RequestReceived():
                    self.requests[event.stream_id] = Request(event.stream_id, list(event.headers))
                case DataReceived():
                    self.requests[event.stream_id].body += event.data
                case StreamEnded():
                    self.requests[event.stream_id].ended = True
                case StreamReset():
                    self.resets[event.stream_id] = int(event.error_code)
        return events

    def request(self, *, whole: bool = True) -> Request:
        """The next request that nobody has been given. Raises ConnectionError at the end."""
        while True:
            for number, request in self.requests.items():
                if request.ended or not whole:
                    return self.requests.pop(number) if request.ended else request
            if not self.receive():
                raise ConnectionError("the connection ended")

    def reply(
        self,
        stream: int,
        status: int = 200,
        body: bytes = b"",
        *extra: tuple[str, str],
        trailers: Fields = (),
    ) -> None:
        headers = [(":status", str(status)), *extra]
        last = list(trailers)
        self.h2.send_headers(stream, headers, end_stream=not body and not last)
        self.flush()
        if body:
            self.send(stream, body, end=not last)
        if last:
            self.h2.send_headers(stream, last, end_stream=True)
            self.flush()
