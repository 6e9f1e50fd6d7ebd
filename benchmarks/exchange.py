"""What one small exchange costs in Python alone: the real proxy between two streams that never wait.

    python benchmarks/exchange.py [--check] [--profile] [--opcodes] [--plain]

The tunnel, its exchanges, the pool, injection, scrubbing and the records are the product; only sockets and
TLS are constants. A request has nine headers, a response seventeen, nine of them different every time, and
the origin echoes the credential.

Calls per exchange hardly depend on the machine. Time does, so it is also told as a ratio: how many times what
the standard library takes to parse the head of the same response, the two taking turns.
"""

from __future__ import annotations

import argparse
import cProfile
import datetime as dt
import http.client
import io
import json
import math
import pstats
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import anyio

from moat.grants import Credential, CredentialInfo, CredentialKind, InjectionRule, Secret
from moat.journal import LineWriter
from moat.proxy import Authority, Policy, Proxy, RunCA, Trace, Upstream
from moat.proxy.limits import Limits
from moat.proxy.message import MessageReader
from moat.proxy.tunnel import Tunnel

_BATCHES = 400
_COMMITTED = Path(__file__).with_name("exchange.json")
_TOLERANCE = {"ratio": 0.35, "calls": 0.08}  # of the noise that was seen
SECRET = "real-secret-token"
REQUEST = b"""GET /v1/things?page=2 HTTP/1.1\r
Host: bench.test\r
User-Agent: claude-cli/2.1.0 (external, cli)\r
Accept: application/json\r
Accept-Encoding: gzip, deflate, br\r
Content-Type: application/json\r
Authorization: Bearer placeholder-token\r
X-App: cli\r
Anthropic-Version: 2023-06-01\r
Connection: keep-alive\r
\r
"""
RESPONSE = b"""HTTP/1.1 200 OK\r
Server: nginx/1.22.1\r
Date: Thu, 26 Nov 2026 13:35:09 GMT\r
Content-Type: application/json\r
Content-Length: 1023\r
Last-Modified: Thu, 26 Nov 2026 10:00:00 GMT\r
Connection: keep-alive\r
ETag: "6566-3ff"\r
X-Seen-Auth: Bearer real-secret-token\r
X-Request-Id: %(n)032x\r
Cf-Ray: %(n)032x-FRA\r
X-Upstream-Time: %(n)d.123-77\r
Ratelimit-Remaining: %(n)d-77\r
X-Trace: 00-%(n)032x-%(n)d-01\r
Set-Cookie: sid=%(n)032x; Path=/; Secure; HttpOnly\r
X-Served-By: cache-%(n)d-%(n)d.3\r
X-Timer: S%(n)d.123,VS0,VE77\r
Accept-Ranges: bytes\r
\r
"""
_YARDSTICK = (RESPONSE % {b"n": 10**9}).partition(b"\r\n")[2]


class ConstantStream:
    """A stream whose peer has always just answered. As much of `Stream` as a tunnel touches."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.deadline = math.inf
        self.broken = self.ended = self.truncated = False
        self._pieces = pieces

    async def receive(self) -> bytes:
        return next(self._pieces, b"")

    async def send(self, data: bytes) -> None:
        pass

    async def start_tls(self, *_: Any, **__: Any) -> ConstantStream:
        return self

    def selected_alpn_protocol(self) -> str:
        return "http/1.1"

    def __getattr__(self, name: str) -> Any:
        if name in {"aclose", "send_eof"}:
            return self._nothing
        return self._ignore

    async def _nothing(self, *_: Any, **__: Any) -> None:
        pass

    def _ignore(self, *_: Any, **__: Any) -> None:
        pass

    def when_gone(self, call: Any, *, at_eof: bool = True) -> None:
        pass

    def quiet(self) -> bool:
        return True

    def unread(self, data: bytes) -> None:
        pass


class ConstantUpstream(Upstream):
    """The real pool, over origins that are not there."""

    async def dial(self, _authority: Authority) -> Any:
        return ConstantStream(responses())


class OneCredential:
    """A CredentialSource with the credential at hand, as a supervisor that has unlocked its vault."""

    def __init__(self) -> None:
        info = CredentialInfo("bench", CredentialKind.TOKEN, ("bench.test",), dt.datetime.now(dt.UTC))
        self._credential = Credential(info, Secret(SECRET))

    async def credential(self, _name: str) -> Credential:
        return self._credential


def requests(count: int) -> Iterator[bytes]:
    yield b"\x16"  # "TLS begins"
    for _ in range(count):
        yield REQUEST


def responses() -> Iterator[bytes]:
    body = b"x" * 1023
    number = 10**9
    while True:
        number += 1
        yield RESPONSE % {b"n": number} + body


async def run(count: int, *, plain: bool, measured: Callable[[Any], Any]) -> Any:
    """Serve `count` requests on one connection."""
    rule = InjectionRule(
        credential="bench",
        hosts=("bench.test",),
        header="authorization",
        placeholder="placeholder-token",
        ports=(443,),
    )
    with tempfile.TemporaryDirectory() as directory:
        trace = Trace(LineWriter(Path(directory) / "network.jsonl"))
        proxy = Proxy(
            policy=Policy(),
            ca=RunCA.generate("bench"),
            rules=() if plain else (rule,),
            credentials=OneCredential(),
            upstream=ConstantUpstream(),
            on_event=trace.add,
            ready=trace.ready,
        )

        async def serve(number: int) -> None:
            client: Any = ConstantStream(requests(number))
            tunnel = Tunnel(proxy._setup, MessageReader(client, Limits()))
            await tunnel.captured(Authority("bench.test", 443))
            trace.flush()

        await serve(10)
        return await measured(lambda: serve(count))


async def timed(serve: Callable[[], Any], count: int) -> tuple[float, float]:
    """µs of CPU of an exchange and of the yardstick: the quickest of many short batches that take turns.

    Noise only ever adds, and a batch is shorter than a time slice.
    """
    best = yardstick = math.inf
    for _ in range(_BATCHES):
        before = time.process_time()
        await serve()
        between = time.process_time()
        for _ in range(count):
            http.client.parse_headers(io.BytesIO(_YARDSTICK))
        after = time.process_time()
        best, yardstick = min(best, between - before), min(yardstick, after - between)
    return best / count * 1e6, yardstick / count * 1e6


async def counted(serve: Callable[[], Any], count: int) -> float:
    """Calls of Python and C functions per exchange."""
    calls = 0

    def count_call(_frame: FrameType, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    sys.setprofile(count_call)
    try:
        await serve()
    finally:
        sys.setprofile(None)
    return calls / count


async def profiled(serve: Callable[[], Any]) -> None:
    profile = cProfile.Profile()
    profile.enable()
    await serve()
    profile.disable()
    pstats.Stats(profile).sort_stats("tottime").print_stats(45)


async def opcodes(serve: Callable[[], Any], count: int) -> None:
    """Print each Python function's calls and opcodes per exchange, with a share of the one connection's."""
    calls: Counter[CodeType] = Counter()
    steps: Counter[CodeType] = Counter()

    def step(frame: FrameType, event: str, _arg: object) -> Any:
        if event == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            calls[frame.f_code] += 1
        steps[frame.f_code] += event == "opcode"
        return step

    sys.settrace(step)
    try:
        await serve()
    finally:
        sys.settrace(None)
    print(f"{calls.total() / count:7.2f} {steps.total() / count:8.1f}  in all")
    for code, found in steps.most_common():
        place = "/".join(Path(code.co_filename).parts[-2:])
        print(f"{calls[code] / count:7.2f} {found / count:8.1f}  {place} {code.co_name}")


def measure(count: int, *, plain: bool = False) -> dict[str, float]:
    micros, yardstick = anyio.run(lambda: run(count, plain=plain, measured=lambda serve: timed(serve, count)))
    calls = anyio.run(lambda: run(count, plain=plain, measured=lambda serve: counted(serve, count)))
    return {"micros": round(micros, 1), "ratio": round(micros / yardstick, 2), "calls": round(calls)}


def check(found: dict[str, float]) -> str:
    """What has become worse than the committed numbers, beyond the noise."""
    committed = json.loads(_COMMITTED.read_text())
    return ", ".join(
        f"{name} {found[name]:g}, committed {committed[name]:g}"
        for name, tolerance in _TOLERANCE.items()
        if found[name] > committed[name] * (1 + tolerance)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Python's share of an exchange")
    parser.add_argument("--count", type=int, default=20, help="exchanges in a batch")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--opcodes", action="store_true", help="of each function, per exchange")
    parser.add_argument("--plain", action="store_true", help="no injection, no scrubbing")
    parser.add_argument("--check", action="store_true", help=f"fail when worse than {_COMMITTED.name}")
    options = parser.parse_args()
    if options.profile:
        anyio.run(lambda: run(options.count * 100, plain=options.plain, measured=profiled))
        return 0
    if options.opcodes:
        many = options.count * 100
        anyio.run(lambda: run(many, plain=options.plain, measured=lambda serve: opcodes(serve, many)))
        return 0
    found = measure(options.count, plain=options.plain)
    print(json.dumps(found))
    if options.check and (worse := check(found)):
        print(f"slower than it was: {worse}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
