"""What a proxy holds after a hundred thousand exchanges, and while a body of a gigabyte passes.

    python -m benchmarks.soak.soak [--exchanges N] [--body BYTES] [--loop asyncio|uvloop|trio]

Exits with 1 when something is left behind or grows. The proxy runs in this process, its server and its
clients in others, so that file descriptors, tasks and memory are the proxy's own. Method and last numbers:
benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import gc
import math
import multiprocessing
import os
import resource
import socket
import ssl
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import anyio

from moat.proxy import ExchangeFinished, Policy, Proxy, RunCA, Upstream, UpstreamOptions
from moat.runtime.loop import keep_freed_memory
from tests.proxy.conftest import LOOPS, RULE, SECRET, Credentials
from tests.proxy.peers import Origin, Wire, client_context, reply, world

SPAWN = multiprocessing.get_context("spawn")
CLIENTS = 4
HOST = "api.test"
PIECE = b"\x5a" * 65536
GROWTH = 6 << 20  # bytes that the allocator may keep between the first tenth and the end
WHOLE = 48 << 20  # bytes of memory for a body of any size


def serve(wire: Wire) -> None:
    """A server that takes any body and gives a small answer, or `/down?N` bytes, or hangs up."""
    while True:
        request = wire.message(head_only=True)
        left = int(request.get("content-length") or 0)
        while left:
            left -= len(wire.receive())
        if request.target.startswith("/down"):
            size = int(request.target.partition("?")[2])
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            for _ in range(size // len(PIECE)):
                wire.send(PIECE)
        elif request.target == "/dies":
            return
        else:
            wire.send(reply(200, b"x" * 1000))


def client(address: tuple[str, int], ca_pem: bytes, turns: int) -> None:
    """Sixteen requests on a connection, and one that ends it in one of three ways."""
    trust = client_context(ca_pem)
    for turn in range(turns):
        wire = tunnel(address, trust)
        for number in range(16):
            body = b"abc" if number % 2 else b""
            wire.send(
                f"POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
            )
            assert wire.message().status == 200
        match turn % 3:
            case 0:
                wire.send(b"GET / HTTP/1.1\r\nHost: wrong.test\r\n\r\n")
                assert wire.message().status == 403
            case 1:
                wire.send(b"GET / HTTP/1.1\r\nHost: api")
                wire.reset()
            case _:
                wire.send(f"GET /dies HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
                assert wire.message().status == 502
        wire.cut()


def tunnel(address: tuple[str, int], trust: ssl.SSLContext) -> Wire:
    wire = Wire(socket.create_connection(address))
    wire.send(f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\n\r\n".encode())
    assert wire.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200")
    return wire.tls(trust, HOST)


def carry(address: tuple[str, int], ca_pem: bytes, size: int) -> None:
    """`size` bytes up, then as many down."""
    wire = tunnel(address, client_context(ca_pem))
    wire.send(f"POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {size}\r\n\r\n".encode())
    for _ in range(size // len(PIECE)):
        wire.send(PIECE)
    assert wire.message().status == 200
    wire.send(f"GET /down?{size} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    wire.message(head_only=True)
    left = size
    while left:
        left -= len(wire.receive())
    wire.close()


def server(port: Connection) -> None:
    """Tells its port and its CA, and serves until it is ended."""
    with Origin(serve, context=world().context(HOST)) as origin:
        port.send((origin.address, world().pem))
        port.recv()


# --- what is measured ------------------------------------------------------------------------------


@dataclass
class Soak:
    """A proxy in this process, and what it takes to load it."""

    proxy: Proxy
    upstream: Upstream
    address: tuple[str, int]
    ca_pem: bytes
    finished: list[int]  # number of exchanges, in one place

    async def exchanges(self, total: int) -> bool:
        """Whether what is held at the end is what was held after the first tenth."""
        turns = math.ceil(total / 10 / CLIENTS / 16)
        await in_processes(CLIENTS, client, self.address, self.ca_pem, turns)
        before, started, cpu = await self._state(), time.monotonic(), time.process_time()
        for _ in range(9):
            await in_processes(CLIENTS, client, self.address, self.ca_pem, turns)
        took, cpu = time.monotonic() - started, time.process_time() - cpu
        after = await self._state()
        print(f"{self.finished[0]} exchanges; nine tenths of them in {took:.0f} s, {cpu:.0f} s of CPU")
        print(f"  after the first tenth: {before}\n  at the end:            {after}")
        lasting = all(after[what] <= before[what] for what in ("fds", "tasks", "streams"))
        return lasting and after["memory"] - before["memory"] < GROWTH

    async def body(self, size: int) -> bool:
        """Whether a body passes in memory that does not depend on its size."""
        before = most = resident()
        started = time.monotonic()
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                nonlocal most
                while True:
                    await anyio.sleep(0.02)
                    most = max(most, resident())

            tasks.start_soon(watch)
            await in_processes(1, carry, self.address, self.ca_pem, size)
            tasks.cancel_scope.cancel()
        took, rose = time.monotonic() - started, most - before
        print(
            f"{size} bytes up and as many down in {took:.0f} s; memory rose by {rose / 2**20:.1f} MiB at most"
        )
        return rose < WHOLE

    async def _state(self) -> dict[str, int]:
        """What is held once everything that ends has ended."""
        while self.proxy.connections:
            await anyio.sleep(0.05)
        await self.upstream.aclose()
        await anyio.sleep(0.5)
        gc.collect()
        return {
            "fds": len(os.listdir("/proc/self/fd")),
            "tasks": len(anyio.get_running_tasks()),
            "streams": len(self.upstream.watch),
            "memory": resident(),
        }


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


async def in_processes(count: int, function: Callable[..., None], *arguments: object) -> None:
    workers = [SPAWN.Process(target=function, args=arguments) for _ in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        await anyio.to_thread.run_sync(worker.join)
        if worker.exitcode:
            raise SystemExit("a client did not get what it was promised")


async def soak(options: argparse.Namespace, origin: tuple[str, int], pem: bytes) -> int:
    finished = [0]

    def count(_event: ExchangeFinished) -> None:
        finished[0] += 1

    ca, listener = RunCA.generate("run_soak"), socket.create_server(("127.0.0.1", 0), backlog=512)
    upstream = Upstream(UpstreamOptions(extra_roots=pem, connect_to={(HOST, 443): origin}))
    proxy = Proxy(policy=Policy(), ca=ca, rules=(RULE,), credentials=Credentials({"demo": SECRET}),
                  upstream=upstream, on_event=count)  # fmt: skip
    made = Soak(proxy, upstream, listener.getsockname(), ca.certificate_pem, finished)
    async with anyio.create_task_group() as tasks:
        await tasks.start(proxy.serve, listener)
        well = await made.exchanges(options.exchanges) and await made.body(options.body)
        await proxy.aclose()
    print("nothing is left, and memory is bounded" if well else "FAILED")
    return 0 if well else 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--exchanges", type=int, default=100_000)
    parser.add_argument("--body", type=int, default=2**30, help="bytes, each way")
    parser.add_argument("--loop", choices=LOOPS, default="uvloop")
    options = parser.parse_args()
    backend, backend_options = LOOPS[options.loop]
    keep_freed_memory()  # as every process of Moat that serves a proxy
    ours, theirs = SPAWN.Pipe()
    serving = SPAWN.Process(target=server, args=(theirs,))
    serving.start()
    try:
        address, pem = ours.recv()
        return anyio.run(soak, options, address, pem, backend=backend, backend_options=backend_options)
    finally:
        ours.send(None)
        serving.join()


if __name__ == "__main__":
    sys.exit(main())
