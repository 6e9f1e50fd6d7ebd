"""Answers of an engine that is not well: cut off, refused, in pieces. A good one is in every other test."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import anyio
import pytest

from moat.runtime import engine as engine_calls, engine_http
from moat.runtime.engine import Engine
from moat.runtime.engine_http import EngineError, Exchange
from moat.runtime.engine_streams import Attachment
from moat.runtime.sandbox import Output
from moat.runtime.size import Size

pytestmark = pytest.mark.anyio

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextlib.asynccontextmanager
async def engine(
    directory: Path, *pieces: bytes, pause: float = 0.0
) -> AsyncIterator[tuple[Path, list[bytes]]]:
    """Sends `pieces` to whoever has asked, and hangs up. Where it is, and what it was asked."""
    asked: list[bytes] = []
    serving: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        with contextlib.suppress(OSError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
        writer.close()

    path = directory / "d.sock"
    async with await asyncio.start_unix_server(serve, str(path)):
        yield path, asked
        await asyncio.gather(*filter(None, serving))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
        CHUNKED + b"2\r\n{}\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n<a>",
    ],
    ids=["none", "half a head", "half a body", "no last chunk", "no HTTP", "no JSON"],
)
async def test_a_broken_answer_is_an_error_of_the_engine(tmp_path: Path, answer: bytes) -> None:
    async with engine(tmp_path, answer) as (path, _):
        with pytest.raises(EngineError) as raised:
            await Engine(path, api_version="1.41").image("debian")
    assert raised.value.status == 0


async def test_nobody_there_is_one_too(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="went away"):
        await Engine(tmp_path / "none.sock", api_version="1.41").start("c")


async def test_a_refusal_has_the_engine_s_words_and_status(tmp_path: Path) -> None:
    body = json.dumps({"message": "no such container"}).encode()
    head = b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with engine(tmp_path, head, body) as (path, asked):
        with pytest.raises(EngineError, match="no such container") as raised:
            await Engine(path, api_version="1.41").start("a b")
        assert await Engine(path, api_version="1.41").image("x") is None
    assert raised.value.status == 404
    assert asked[0].startswith(b"POST /v1.41/containers/a%20b/start HTTP/1.1\r\n")


async def test_an_answer_is_held_in_memory_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's base image may have an /etc/passwd of a terabyte, all holes. Seen failing without the bound."""
    monkeypatch.setattr(engine_http, "_LARGEST", 1 << 20)
    for head, piece in (
        (CHUNKED, b"40000\r\n" + bytes(1 << 18) + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1099511627776\r\n\r\n", bytes(1 << 18)),
    ):
        async with engine(tmp_path, head, *[piece] * 8) as (path, _):
            with pytest.raises(EngineError, match="answers more than 1 MiB"):
                await Engine(path, api_version="1.41").read_file("c", "/etc/passwd")
        (tmp_path / "d.sock").unlink(missing_ok=True)  # Python 3.13 takes it along


async def test_who_stops_waiting_for_an_answer_may_go_on_later(tmp_path: Path) -> None:
    async with engine(tmp_path, CHUNKED + b"2\r\nab\r\n", b"1\r\nc\r\n", b"0\r\n\r\n", pause=0.1) as (
        path,
        _,
    ):
        exchange = await Exchange.begin(path, "POST", "/wait")
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(exchange.body(), 0.02)
        assert await exchange.body() == b"abc"
        exchange.close()


async def test_streams_come_apart_wherever_the_pieces_are_cut(tmp_path: Path) -> None:
    wire = b"\1\0\0\0\0\0\0\3out" + b"\2\0\0\0\0\0\0\0" + b"\2\0\0\0\0\0\0\4oops" + b"\1\0\0\0\0\0\0\1!"
    pieces = [wire[at : at + 5] for at in range(0, len(wire), 5)]
    async with engine(tmp_path, SWITCHED, *pieces, pause=0.005) as (path, _):
        streams = Attachment(await Exchange.begin(path, "POST", "/attach", upgrade=True), terminal=False)
        seen: list[Output] = []
        while (output := await streams.read()) is not None:
            seen.append(output)
        streams.close()
    assert b"".join(o.data for o in seen if o.stream == "stdout") == b"out!"
    assert b"".join(o.data for o in seen if o.stream == "stderr") == b"oops"


async def test_streams_without_an_upgrade_are_refused(tmp_path: Path) -> None:
    async with engine(tmp_path, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as (path, _):
        with pytest.raises(EngineError):
            await Exchange.begin(path, "POST", "/attach", upgrade=True)


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"], ids=["nothing", "half"]
)
async def test_an_engine_that_stands_still_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """Seen failing without `within`: each call then waits until the engine hangs up."""
    monkeypatch.setattr(engine_calls, "_PATIENCE", 0.1)
    monkeypatch.setattr(engine_calls, "_QUICK", 0.1)
    async with engine(tmp_path, said, pause=3.0) as (path, _):
        it = Engine(path, api_version="1.41")
        calls: list[Awaitable[object]] = [
            it.image("debian"), it.create("c", {}), it.put("c", b""), it.read_file("c", "/x"), it.start("c"),
            it.pid("c"), it.running("c"), it.kill("c", 15), it.pause("c"), it.unpause("c"), it.log("c", 9),
            it.remove("c"), it.remove_image("i"), it.run_inside("c", ["true"]),
            it.execute("c", ["true"], terminal=False, stdin=False),
        ]  # fmt: skip
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert [str(end) for end in ends] == ["the Docker engine has not answered for 0.1 s"] * len(calls)
        assert all(isinstance(end, EngineError) and end.hint for end in ends)
        with anyio.fail_after(2):
            await it.resize("c", Size(80, 24))


async def test_what_streams_has_time_for_its_head_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_calls, "_PATIENCE", 0.1)
    async with engine(tmp_path, b"", pause=0.5) as (path, _):
        it = Engine(path, api_version="1.41")
        for call in (it.attach("c", stdin=False, terminal=True), it.ending("c")):
            with pytest.raises(EngineError):
                await call
    (tmp_path / "d.sock").unlink(missing_ok=True)  # Python 3.13 takes it along
    async with engine(tmp_path, CHUNKED, b'11\r\n{"StatusCode": 7}\r\n0\r\n\r\n', pause=0.5) as (path, _):
        it = Engine(path, api_version="1.41")
        ending = await it.ending("c")
        assert await ending.status() == 7
        ending.close()
        assert await it.wait("c") == 7
