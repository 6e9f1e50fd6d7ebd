"""HTTP/2 under fuzzing: frames of a client into our server end, frames of a server into our client end.

Between them stands a whole `Exchange` with a credential, on a loop and on pipes instead of sockets. Inputs are
frames in short (`frames`), so that a mutant is still a row of frames and its lengths are right.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import anyio.lowlevel
from hpack import Decoder
from hyperframe.frame import DataFrame, Frame, HeadersFrame

from moat.authority import Authority, parse_authority
from moat.proxy.certs import RunCA
from moat.proxy.exchange import Exchange
from moat.proxy.h2_client import Client
from moat.proxy.h2_server import Server
from moat.proxy.http1 import parse_request
from moat.proxy.limits import Limits
from moat.proxy.message import MessageReader
from moat.proxy.pipe import PipeEnd
from moat.proxy.policy import Policy
from moat.proxy.site import Places, Setup, Site
from moat.proxy.site_rules import InjectionTable
from moat.proxy.stream import StreamError, Watch
from moat.proxy.tls import H2
from moat.proxy.upstream import Connection
from tests.proxy.conftest import PLACEHOLDER, RULE, SECRET, Credentials
from tests.proxy.oracles import h11_reads

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
RAW = 0x20  # a type from here on: the bytes themselves, without a frame around them
LIMITS = Limits()
_SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_TURNS = 40  # of the loop: enough for all that does not wait for a peer
_PATIENCE = 10.0  # seconds: a peer that has left keeps nobody waiting


def frames(data: bytes) -> bytes:
    """What `type flags stream length payload…` stands for on the wire."""
    wire = bytearray()
    at = 0
    while at + 4 <= len(data):
        kind, flags, stream, length = data[at : at + 4]
        payload = data[at + 4 : at + 4 + length]
        at += 4 + length
        if kind < RAW:
            wire += len(payload).to_bytes(3, "big") + bytes((kind, flags, 0, 0, 0, stream))
        wire += payload
    return bytes(wire)


def shortened(*made: Frame) -> bytes:
    """The reverse: frames as an input."""
    short = bytearray()
    for frame in made:
        wire = frame.serialize()
        payload = wire[9:]
        for at in range(0, max(len(payload), 1), 255):
            piece = payload[at : at + 255]
            assert not at or wire[3] == 0, "only DATA may be cut"
            short += bytes((wire[3], wire[4], wire[8], len(piece))) + piece
    return bytes(short)


def h2_client(data: bytes) -> None:
    """What a client may send: it is answered or refused by the protocol, and the credential goes its way."""
    pattern, wire = data[0] if data else 0, frames(data[1:])
    if not pattern & 1:
        wire = PREFACE + _SETTINGS + wire
    run(functools.partial(_serve, wire, size=pattern >> 2, stranger=bool(pattern & 2)))


def h2_server(data: bytes) -> None:
    """What a server may send: the client gets a response or none, and never the credential."""
    pattern, wire = data[0] if data else 0, frames(data[1:])
    run(functools.partial(_ask, _SETTINGS + wire, size=pattern >> 2, again=bool(pattern & 1)))


class World:
    """What exchanges share, with an upstream that is a pipe: its far end is the test's."""

    def __init__(self) -> None:
        self.watch = Watch()
        self.asked: list[Authority] = []
        self.far: list[PipeEnd] = []
        self.connect: Callable[[Authority], PipeEnd] = self._answering
        self.credentials = Credentials({"demo": SECRET})
        self.multiplexed: Any = self
        self.setup = Setup(
            Policy(),
            _ca(),
            InjectionTable([RULE]),
            self.credentials,
            self,
            LIMITS,
            lambda _event: None,
            lambda: None,
            lambda *_: None,
            streams=Places(LIMITS.h2_streams_of_run),
            held=Places(LIMITS.held),
        )

    async def acquire(self, scheme: str, authority: Authority, **_: object) -> Connection:
        self.asked.append(authority)
        near = self.connect(authority)
        return Connection((scheme, authority.host, authority.port), MessageReader(near, LIMITS))

    def release(self, connection: Connection) -> None:
        connection.stream.close()

    def remember(self, *_: object, **__: object) -> None:
        """What `Multiplexed` would."""

    def _answering(self, authority: Authority) -> PipeEnd:
        """A host that the credential is for sends it back."""
        near, far = PipeEnd.pair(self.watch)
        body = SECRET.encode() if authority.host == "api.test" else b"hello"
        near.give(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        self.far.append(far)
        return near


async def _serve(wire: bytes, *, size: int, stranger: bool) -> None:
    made, authority = World(), Authority("other.test" if stranger else "api.test", 443)
    near, far = PipeEnd.pair(made.watch)
    server = Server(made.setup, near, Site.of(made.setup, "https", authority, None, H2))
    with anyio.fail_after(_PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.run)
            await _play(wire, size, near, far)
    near.abort()
    assert not server._requests
    assert made.setup.streams.free == LIMITS.h2_streams_of_run
    assert set(made.asked) <= {authority}
    assert SECRET.encode() not in _text(inbox(far), client=False)
    for each in made.far:
        _check_request(inbox(each), authority)


async def _play(wire: bytes, size: int, end: PipeEnd, peer: PipeEnd) -> None:
    """Let `peer` send `wire` to `end` in pieces, and leave when nothing more comes of it."""
    for piece in pieces(wire, size):
        end.give(piece)
        await anyio.lowlevel.checkpoint()
    await _settled()
    await peer.send_eof()


async def _settled() -> None:
    for _ in range(_TURNS):
        await anyio.lowlevel.checkpoint()


def _check_request(sent: bytes, authority: Authority) -> None:
    """What went upstream is one request for the right place, with the credential only where it is bound."""
    if not sent:
        return
    head = parse_request(sent, LIMITS)
    assert head is not None
    assert parse_authority(head.host, default_port=443) == authority
    assert PLACEHOLDER.encode() not in sent[: head.size]
    assert (SECRET.encode() in head.block) == (authority.host == "api.test")


async def _ask(wire: bytes, *, size: int, again: bool) -> None:
    """Two exchanges over one connection to a server that sends `wire`."""
    made = World()
    client_end, server_end = PipeEnd.pair(made.watch)
    client = Client(client_end, LIMITS, made.watch)
    made.connect = lambda _authority: client.call()
    site = Site.of(made.setup, "https", Authority("api.test", 443), None)
    answers: list[bytes] = []

    async def exchange() -> None:
        near, far = PipeEnd.pair(made.watch)
        head = parse_request(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n", LIMITS)
        assert head is not None
        answer = bytearray()

        async def read() -> None:
            try:
                while data := await far.receive():
                    answer.extend(data)
            except StreamError:
                pass

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await Exchange(made.setup, MessageReader(near, LIMITS), site, head).run()
            await near.aclose()
        answers.append(bytes(answer))

    with anyio.fail_after(_PATIENCE):
        async with anyio.create_task_group() as tasks:
            await tasks.start(client.run)
            async with anyio.create_task_group() as exchanges:
                for _ in range(1 + again):
                    exchanges.start_soon(exchange)
                await _settled()
                await _play(wire, size, client_end, server_end)
    assert client.idle
    assert _text(inbox(server_end), client=True).count(SECRET.encode()) <= 1 + again
    for answer in answers:
        assert SECRET.encode() not in answer
        assert answer.startswith(b"HTTP/1.1 ")
    assert sum(map(_ended, answers)) <= _ended_streams(wire)


def _ended(answer: bytes) -> bool:
    """Whether a client takes it for a whole response of which only the server can have told the end."""
    heard = h11_reads(answer, method=b"GET", ended=True)
    return heard is not None and heard.done and (b"transfer-encoding", b"chunked") in heard.headers


def _ended_streams(wire: bytes) -> int:
    """How many streams of a server's bytes end by themselves: with END_STREAM on HEADERS or DATA."""
    ended = set()
    at = 0
    while at + 9 <= len(wire):
        length, kind, flags = int.from_bytes(wire[at : at + 3], "big"), wire[at + 3], wire[at + 4]
        if kind in {0, 1} and flags & 1 and at + 9 + length <= len(wire):
            ended.add(wire[at + 5 : at + 9])
        at += 9 + length
    return len(ended)


def _text(sent: bytes, *, client: bool) -> bytes:
    """Data and fields of the frames that we sent, all of which can be read."""
    at = len(PREFACE) if client and sent else 0
    assert sent[:at] == PREFACE[:at]
    fields = Decoder()
    fields.max_allowed_table_size = 1 << 32  # whatever the peer has allowed
    text = bytearray()
    while at < len(sent):
        frame, length = Frame.parse_frame_header(memoryview(sent[at : at + 9]))
        assert at + 9 + length <= len(sent)
        frame.parse_body(memoryview(sent[at + 9 : at + 9 + length]))
        at += 9 + length
        if isinstance(frame, DataFrame):
            text += frame.data
        elif isinstance(frame, HeadersFrame):
            text += b"\n".join(b"%b: %b" % field for field in fields.decode(frame.data, raw=True))
    return bytes(text)


def pieces(wire: bytes, size: int) -> list[bytes]:
    return [wire[at : at + size] for at in range(0, len(wire), size)] if size else [wire]


def inbox(end: PipeEnd) -> bytes:
    """What an end was given and nobody has received."""
    return b"".join(end._inbox)


def run(main: Callable[[], Coroutine[None, None, None]]) -> None:
    """On a loop that is made once: what a loop costs, an input would cost. What was logged is a fault."""
    loop, faults = _loop()
    faults.clear()
    loop.run_until_complete(main())
    assert not faults, faults


class _Faults(logging.Handler):
    """Mistakes of ours end one stream, with a word in the log."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(logging.Formatter().format(record))


@functools.cache
def _loop() -> tuple[asyncio.AbstractEventLoop, list[str]]:
    faults = _Faults()
    logging.getLogger("moat.proxy").addHandler(faults)
    return asyncio.new_event_loop(), faults.found


@functools.cache
def _ca() -> RunCA:
    return RunCA.generate("run_fuzz")
