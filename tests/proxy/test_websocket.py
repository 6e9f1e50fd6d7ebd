"""WebSockets with a credential: frames at every split, what is masked and put in, and what is no frame.

Seen to fail: with `finish` left out at the end of a message (it waits for ever), with a new `Scrubber` for each frame
(fragments bring the secret), with `Finder.held` giving 0 (a placeholder over two frames stays), with each
check of `_head` and `_begin` left out, without the look at Sec-WebSocket-Extensions.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import Server, ServerConnection, serve

from moat.proxy.budget import Budget
from moat.proxy.limits import Limits
from moat.proxy.stream import StreamError
from moat.proxy.websocket import _WHOLE, ClientFrames, ClosedError, FrameError, Passing, ServerFrames
from tests.proxy.conftest import PLACEHOLDER, RULE, SECRET, House, house, tls_origin
from tests.proxy.peers import Wire, world
from tests.proxy.test_exchange import API, get

KEY = b"\x01\xa2\x33\xf4"
STARS = "*" * len(SECRET)
FRAMES_TOO = replace(RULE, surfaces=("header", "websocket"))
FRAMES_ONLY = replace(RULE, surfaces=("websocket",))


def frame(opcode: int, payload: bytes = b"", *, last: bool = True, key: bytes = b"", rsv: int = 0) -> bytes:
    """A frame, written in the shortest way."""
    size, mask = len(payload), 0x80 if key else 0
    head = bytes((opcode | (0x80 if last else 0) | rsv,))
    if size < 126:
        head += bytes((mask | size,))
    elif size < 65536:
        head += bytes((mask | 126,)) + size.to_bytes(2)
    else:
        head += bytes((mask | 127,)) + size.to_bytes(8)
    return (
        head
        + key
        + (bytes(b ^ k for b, k in zip(payload, itertools.cycle(key), strict=False)) if key else payload)
    )


@dataclass
class Read:
    """What a naive reader takes frames for."""

    messages: list[tuple[int, bytes]]
    controls: list[tuple[int, bytes]]
    frames: int


def read(wire: bytes) -> Read:
    found, opcode, text, frames = Read([], [], 0), 0, b"", 0
    while wire:
        first, size, at = wire[0], wire[1] & 0x7F, 2
        if size > 125:
            at = 4 if size == 126 else 10
            size = int.from_bytes(wire[2:at])
        key = wire[at : at + 4] if wire[1] & 0x80 else b""
        at += len(key)
        payload = wire[at : at + size]
        assert len(payload) == size, "a frame is cut"
        if key:
            payload = bytes(b ^ k for b, k in zip(payload, itertools.cycle(key), strict=False))
        wire, frames = wire[at + size :], frames + 1
        if first & 0x0F > 7:
            found.controls.append((first & 0x0F, payload))
            continue
        assert bool(first & 0x0F) is not bool(opcode)
        opcode, text = opcode or first & 0x0F, text + payload
        if first & 0x80:
            found.messages.append((opcode, text))
            opcode, text = 0, b""
    found.frames = frames
    return found


# --- every split ---------------------------------------------------------------------------------

SECRETS = (SECRET.encode(),)
DOWN = [
    frame(1, f"a {SECRET} b".encode()),
    frame(2, SECRET.encode() * 2),
    frame(1, b"one " + SECRET.encode()[:10], last=False),
    frame(9, b"ping"),
    frame(0, SECRET.encode()[10:20], last=False),
    frame(0, b"", last=False),
    frame(10, SECRET.encode()),
    frame(0, SECRET.encode()[20:] + b" end sk-r"),
    frame(1),
    frame(1, b"sk-real-"),
    frame(8, (4001).to_bytes(2) + b"over " + SECRET.encode()),
]  # fmt: skip
CLEAN = Read(
    messages=[
        (1, f"a {STARS} b".encode()), (2, STARS.encode() * 2), (1, f"one {STARS} end sk-r".encode()), (1, b""),
        (1, b"*" * 8),
    ],
    controls=[(9, b"ping"), (10, STARS.encode()), (8, (4001).to_bytes(2) + f"over {STARS}".encode())],
    frames=0,
)  # fmt: skip


def test_server_frames_at_every_split() -> None:
    whole = b"".join(DOWN)
    for at in range(len(whole) + 1):
        frames = ServerFrames(SECRETS)
        found = read(frames.feed(whole[:at]) + frames.feed(whole[at:]) + frames.finish())
        assert (found.messages, found.controls) == (CLEAN.messages, CLEAN.controls), at
        assert frames.messages == 5
    frames = ServerFrames(SECRETS)
    found = read(b"".join(frames.feed(whole[at : at + 1]) for at in range(len(whole))))
    assert (found.messages, found.controls) == (CLEAN.messages, CLEAN.controls)


def test_client_frames_at_every_split() -> None:
    held = PLACEHOLDER.encode()
    whole = b"".join([
        frame(1, b'{"token": "' + held + b'", "' + held[:9], last=False, key=KEY),
        frame(10, b"pong", key=KEY),
        frame(0, held[9:], last=False, key=b"\0\0\0\0"),
        frame(0, b'": 1} ' + held[:5], key=KEY),
        frame(2, held, key=KEY),
        frame(1, held[:-1], key=KEY),
        frame(8, (1000).to_bytes(2) + held, key=KEY),
    ])  # fmt: skip
    expected = [
        (1, f'{{"token": "{SECRET}", "{SECRET}": 1}} {PLACEHOLDER[:5]}'.encode()),
        (2, held),
        (1, held[:-1]),
    ]
    for at in range(len(whole) + 1):
        frames = ClientFrames([(held, SECRET.encode())])
        wire = frames.feed(whole[:at]) + frames.feed(whole[at:])
        found = read(wire)
        assert found.messages == expected, at
        assert found.controls == [(10, b"pong"), (8, (1000).to_bytes(2) + held)]
        assert frames.messages == 3


def test_what_was_put_in_is_not_read_again() -> None:
    """Its end and what follows may look like a placeholder. Seen failing with `bytes.replace` and the rest held."""
    frames = ClientFrames([(b"PH-AAAA", b"xPH-AAA")])
    wire = frames.feed(frame(1, b"PH-AAAA", last=False, key=KEY) + frame(0, b"A", key=KEY))
    assert read(wire).messages == [(1, b"xPH-AAAA")]


def test_random_messages_in_random_frames_and_pieces() -> None:
    """Long ones too: they leave in pieces, and what waits is bounded."""
    chance = random.Random(2026)
    for _ in range(60):
        texts = []
        wire = b""
        for _ in range(chance.randrange(1, 4)):
            text = chance.randbytes(chance.choice([0, 5, 126, 65535, 70_000, 200_000]))
            where = chance.randrange(len(text) + 1)
            text = text[:where] + SECRET.encode() + text[where:]
            texts.append(text)
            cuts = sorted(chance.randrange(len(text) + 1) for _ in range(chance.randrange(4)))
            parts = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
            for number, part in enumerate(parts):
                wire += frame(2 if not number else 0, part, last=number == len(parts) - 1)
        frames, leaving, at = ServerFrames(SECRETS), b"", 0
        while at < len(wire):
            size = chance.randrange(1, 100_000)
            leaving += frames.feed(wire[at : at + size])
            at += size
            assert len(frames._buffer) <= _WHOLE + 14
        assert [text for _, text in read(leaving).messages] == [
            text.replace(SECRET.encode(), STARS.encode()) for text in texts
        ]


def test_a_message_never_waits_for_the_next() -> None:
    """What could begin a secret is held inside a message only; as much as tells something of it is masked."""
    frames = ServerFrames(SECRETS)
    for size in range(len(SECRET)):
        text = b". " + SECRET.encode()[:size]
        shown = text if size < 6 else b". " + b"*" * size
        assert read(frames.feed(frame(1, text))).messages == [(1, shown)]
    assert frames.feed(frame(1, b"x" * 60_000)[:50_000]) == b"", "a frame of usual size is waited for"
    assert read(frames.feed(frame(1, b"x" * 60_000)[50_000:])).frames == 1


def test_a_secret_in_several_messages_is_masked_from_where_it_tells_something() -> None:
    """Seen failing with `finish` in place of `pause` in `ServerFrames`."""
    secret = SECRET.encode()
    for cuts in ((3,), (6,), (20,), (2, 5), (6, 12, 18), tuple(range(1, len(secret)))):
        frames = ServerFrames(SECRETS)
        parts = [secret[a:b] for a, b in itertools.pairwise((0, *cuts, len(secret)))]
        texts = [text for _, text in read(frames.feed(b"".join(frame(1, part) for part in parts))).messages]
        assert [len(text) for text in texts] == [len(part) for part in parts]
        shown = b"".join(texts).rstrip(b"*")
        assert secret.startswith(shown)
        assert len(shown) < 6
        assert read(frames.feed(frame(1, b"and on"))).messages == [(1, b"and on")]


def test_frames_that_change_nothing_stay_as_they_are() -> None:
    whole = frame(1, b"x" * 65_536) + frame(2, b"y" * 300, last=False) + frame(0, b"z")
    assert ServerFrames(SECRETS).feed(whole) == whole


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (frame(1, b"x", rsv=0x40), "reserved bit"), (frame(1, b"x", rsv=0x20), "reserved bit"),
        (frame(1, b"x", rsv=0x10), "reserved bit"), (frame(3, b"x"), "opcode 3"), (frame(11), "opcode 11"),
        (frame(9, b"x", last=False), "control frame"), (frame(9, b"x" * 126), "control frame"),
        (frame(0, b"x"), "continuation of no message"), (frame(1, b"x", last=False) + frame(2), "inside another"),
        (frame(1, b"x", key=KEY), "with a mask"), (b"\x81\x7e\x00\x7d" + b"x" * 125, "shortest way"),
        (b"\x81\x7f" + (65535).to_bytes(8), "shortest way"), (b"\x81\x7f" + (1 << 63).to_bytes(8), "shortest way"),
    ],
)  # fmt: skip
def test_what_is_no_frame(bad: bytes, why: str) -> None:
    with pytest.raises(FrameError, match=why):
        ServerFrames(SECRETS).feed(bad)
    with pytest.raises(StreamError, match="without a mask"):
        ClientFrames().feed(frame(1, b"x"))


# --- real clients and servers --------------------------------------------------------------------


@contextlib.contextmanager
def websocket_server(handler: Any, **options: Any) -> Iterator[Server]:
    with serve(handler, "127.0.0.1", 0, ssl=world().context("api.test"), **options) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)


@contextlib.contextmanager
def running(handler: Any, loop: str = "asyncio", **options: Any) -> Iterator[House]:
    with websocket_server(handler) as server:
        address = server.socket.getsockname()
        upstream = type("Address", (), {"address": address})()
        with house(loop, origins={API: upstream}, **options) as made:
            yield made


def dial(made: House, **options: Any) -> Any:
    context: ssl.SSLContext = made.trust
    return connect("wss://api.test/ws", proxy=f"http://127.0.0.1:{made.port}", ssl=context, **options)


def hostile(connection: ServerConnection) -> None:
    """Tells the client what it got, in every way there is."""
    assert connection.request is not None
    connection.send(connection.request.headers.get("Authorization", "none"))
    for message in connection:
        if message == "bye":
            connection.ping(SECRET[:20] + SECRET[20:]).wait(5)
            connection.close(4001, f"over {SECRET}")
            return
        connection.send(message)
        size = len(message)
        connection.send([message[:5], message[5:20], message[20 : size - 2], message[size - 2 :]])
        connection.send(message.encode() if isinstance(message, str) else message)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_nothing_that_went_in_comes_back(loop: str) -> None:
    with running(hostile, loop, rules=[FRAMES_TOO]) as made:
        with dial(made, additional_headers={"Authorization": f"Bearer {PLACEHOLDER}"}) as socket:
            assert socket.protocol.extensions == [], "nothing is compressed"
            assert socket.recv() == f"Bearer {STARS}"
            for size in (0, 100, 200_000):
                text = f"{'x' * size}{PLACEHOLDER}{'y' * size}"
                socket.send(text)
                expected = text.replace(PLACEHOLDER, STARS)
                assert [socket.recv(), socket.recv(), socket.recv()] == [
                    expected,
                    expected,
                    expected.encode(),
                ]
            socket.send(["a " + PLACEHOLDER[:7], PLACEHOLDER[7:], " b"])
            assert socket.recv() == f"a {STARS} b"
            assert [socket.recv(), socket.recv()] == [f"a {STARS} b", f"a {STARS} b".encode()]
            socket.send(PLACEHOLDER.encode())
            assert socket.recv() == PLACEHOLDER.encode(), "placeholders in binary messages stay"
            socket.ping(b"are you there").wait(5)
            for _ in range(2):
                socket.recv()
            socket.send("bye")
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, f"over {STARS}")
        event = made.event()
        assert (event.status, event.error, event.grants) == (101, "", ("demo",))
        assert event.messages == (6, 16)
        assert event.request_bytes > 400_000
        assert SECRET not in repr(event)
        assert made.credentials.asked.count("demo") >= 1


def test_a_placeholder_stays_where_the_grant_does_not_ask_for_it() -> None:
    with running(hostile) as made, dial(made) as socket:
        assert socket.recv() == f"Bearer {STARS}"
        socket.send(PLACEHOLDER)
        assert socket.recv() == PLACEHOLDER


def test_a_credential_that_is_for_messages_alone_is_on_no_header() -> None:
    with running(hostile, rules=[FRAMES_ONLY]) as made, dial(made) as socket:
        assert socket.recv() == "none"
        socket.send(PLACEHOLDER)
        assert socket.recv() == STARS


def test_without_a_credential_nothing_is_read() -> None:
    """The extension stays, and messages are not counted."""

    def compressed(connection: ServerConnection) -> None:
        connection.send(str(len(connection.protocol.extensions)))
        connection.send(connection.recv())

    with running(compressed, rules=[]) as made:
        with dial(made) as socket:
            assert socket.recv() == "1"
            socket.send(SECRET * 50)
            assert socket.recv() == SECRET * 50
        assert made.event().messages == (0, 0)


def quiet(ended: list[Any]) -> Callable[[ServerConnection], None]:
    """A server that reads, and notes which Close frame came."""

    def serve(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                connection.recv()
        ended.append(connection.protocol.close_rcvd)

    return serve


@pytest.mark.parametrize("rules", [(RULE,), ()], ids=["credential", "none"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_a_budget_ends_a_socket_and_both_sides_are_told(loop: str, rules: tuple[Any, ...]) -> None:
    """Close code 1008 and the reason, also for a client that goes on sending without reading.

    Seen to fail with `Closing` left out.
    """
    ended: list[Any] = []
    with running(quiet(ended), loop, budgets=[Budget(upload=50_000)], rules=rules) as made:
        with dial(made) as socket, pytest.raises(ConnectionClosed) as closed:  # noqa: PT012 - it ends somewhere in the block
            while True:
                socket.send(os.urandom(1000))
        event = made.event()
    reason = "moat: the budget of 50000 bytes of upload for this run does not allow it"
    for told in (closed.value.rcvd, *ended):
        assert told is not None
        assert (told.code, told.reason) == (1008, reason)
    assert len(ended) == 1
    assert event.denial is not None
    assert (event.denial.code, event.error) == ("budget", reason.removeprefix("moat: "))


def test_a_budget_that_ends_inside_a_frame_tells_who_can_be_told() -> None:
    """A Close frame would be payload of what the server is reading. Seen failing with `Passing.whole` always true."""
    received = bytearray()
    begun, ended = threading.Event(), threading.Event()

    def origin(wire: Wire) -> None:
        wire.message()
        wire.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        with contextlib.suppress(OSError):
            while data := wire.receive():
                received.extend(data)
                begun.set()
        ended.set()

    sent = frame(2, b"x" * 100_000, key=KEY)
    with (
        tls_origin(origin) as server,
        house(origins={API: server}, budgets=[Budget(upload=50_000)], rules=()) as made,
    ):
        with made.tunnel() as wire:
            wire.send(get("/", "Connection: Upgrade", "Upgrade: websocket"))
            assert b" 101 " in wire.until(b"\r\n\r\n")
            wire.send(sent[:10_000])
            assert begun.wait(10)
            with contextlib.suppress(OSError):
                wire.send(sent[10_000:])
            code, text = wire.exactly(4), wire.until(b"does not allow it")
        assert made.event().denial is not None
        assert ended.wait(10)
    assert (code[0], code[2:]) == (0x88, (1008).to_bytes(2))
    assert text.startswith(b"moat: the budget of 50000 bytes")
    assert sent.startswith(bytes(received))


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
@pytest.mark.parametrize(
    ("options", "code"),
    [({}, 1001), ({"rules": (), "budgets": [Budget(upload=50_000)]}, 1001), ({"rules": ()}, None)],
    ids=["credential", "budget", "neither"],
)
def test_a_socket_in_which_nothing_moves_ends_and_both_sides_are_told(
    loop: str, options: dict[str, Any], code: int | None
) -> None:
    """With neither a credential nor a budget nobody knows where a frame ends (docs/limits.md)."""
    ended: list[Any] = []
    limits = replace(Limits(), tunnel_idle_timeout=0.5)
    with running(quiet(ended), loop, limits=limits, **options) as made:
        with dial(made, ping_interval=None) as socket, pytest.raises(ConnectionClosed) as closed:  # noqa: PT012 - as above
            socket.send("hello")
            socket.recv()
        assert made.event().error == "timed out"
    for told in (closed.value.rcvd, *ended):
        assert (told and (told.code, told.reason)) == (
            (code, "moat: nothing has moved for 0.5 s") if code else None
        )
    assert len(ended) == 1


def test_where_a_frame_ends_is_known_at_every_byte() -> None:
    """Extensions, masks and all lengths; after a Close frame nothing may follow."""
    frames = [
        frame(1, b"x", rsv=0x40), frame(9), frame(2, b"y" * 300, last=False, key=KEY), frame(0, b"z" * 70_000),
        frame(8, b"\x03\xe8"),
    ]  # fmt: skip
    ends = set(itertools.accumulate(map(len, frames[:-1]), initial=0))
    data = b"".join(frames)
    for seed in range(20):
        choose, passing, at = random.Random(seed), Passing(), 0
        while at < len(data):
            assert passing.whole is (at in ends)
            size = min(choose.choice([1, 1, 2, 3, 200, 5000]), len(data) - at)
            assert passing.feed(data[at : at + size]) == data[at : at + size]
            at += size
        assert not passing.whole


def test_a_reason_fits_into_its_frame() -> None:
    """It has 123 bytes, and is cut between characters."""
    error = ClosedError(1008, "ä" * 100, "")
    (said,) = read(error.to_client).controls
    assert said == (8, (1008).to_bytes(2) + b"moat: " + ("ä" * 58).encode())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
@pytest.mark.parametrize("whose", ["server", "client"])
def test_a_frame_that_is_none_ends_the_connection_for_both_and_is_recorded(loop: str, whose: str) -> None:
    """Whoever sent it, both are told (close code 1002), and what came before it has been passed on.

    Seen to fail without reading on in `relay._part`.
    """
    heard = bytearray()

    def script(wire: Wire) -> None:
        wire.message()
        wire.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        wire.send(frame(1, b"fine"))
        if whose == "server":
            wire.send(frame(1, SECRET.encode(), rsv=0x40))
        with contextlib.suppress(OSError):
            heard.extend(wire.rest())

    with tls_origin(script) as origin, house(loop, origins={API: origin}) as made:
        with made.tunnel() as wire:
            wire.send(get("/ws", "Connection: Upgrade", "Upgrade: websocket"))
            assert wire.message(head_only=True).status == 101
            if whose == "client":
                wire.send(frame(1, b"up", key=KEY) + frame(1, b"x", key=KEY, rsv=0x40))
                wire.send(b"x" * 2_000_000)  # unread, it would reset the connection
            got = read(wire.rest())
        assert got.messages == [(1, b"fine")]
        ((opcode, told),) = got.controls
        why = b"moat: a reserved bit is set, and no extension was agreed upon"
        assert (opcode, told) == (8, (1002).to_bytes(2) + why)
        event = made.event()
        assert event.error == "websocket: a reserved bit is set, and no extension was agreed upon"
    up = read(bytes(heard))
    assert up.controls == [(8, told)]
    assert up.messages == ([(1, b"up")] if whose == "client" else [])


def test_a_server_that_compresses_unasked_is_refused() -> None:
    def script(wire: Wire) -> None:
        wire.message()
        wire.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
        )
        wire.rest()

    with tls_origin(script) as origin, house(origins={API: origin}) as made, made.tunnel() as wire:
        wire.send(get("/ws", "Connection: Upgrade", "Upgrade: websocket"))
        answer = wire.message()
        assert answer.status == 502
        assert "extension" in answer.json()["error"]


def test_a_secret_that_would_break_a_message_is_not_sent() -> None:
    with running(hostile, rules=[FRAMES_ONLY]) as made, made.tunnel() as wire:
        made.credentials.secrets = {"demo": 'a"b-0123456789'}
        wire.send(get("/ws", "Connection: Upgrade", "Upgrade: websocket"))
        answer = wire.message()
        assert answer.status == 502
        assert "no message can carry" in answer.json()["error"]
