"""The proxy that is measured: a TCP port with a token, an injected credential, network.jsonl.

    python benchmarks/proxy.py --port 9080 --upstream-ca ca.pem --ca-out /tmp/moat-ca.pem

Name resolution is replaced by `connect_to` (the names of `speed/` stand for loopback, which the address guard
refuses); everything else is the product: policy, leak guard, injection, scrubbing, records on disk.
"""

from __future__ import annotations

import argparse
import datetime as dt
import signal
import socket
import tempfile
from functools import partial
from pathlib import Path

import anyio

from moat.grants import Credential, CredentialInfo, CredentialKind, InjectionRule, Secret
from moat.journal import Journal, LineWriter
from moat.proxy import ExchangeFinished, Policy, Proxy, RunCA, Trace, Upstream, UpstreamOptions
from moat.proxy.server import always_allowed
from moat.runtime.loop import keep_freed_memory
from moat.runtime.witness import Witness

HOSTS = ("bench.test", "sse.bench.test", *(f"m{number}.bench.test" for number in range(24)))


class OneCredential:
    """A CredentialSource with the credential at hand, as a supervisor that has unlocked its vault."""

    def __init__(self, secret: str) -> None:
        info = CredentialInfo("bench", CredentialKind.TOKEN, ("bench.test",), dt.datetime.now(dt.UTC))
        self._credential = Credential(info, Secret(secret))

    async def credential(self, name: str) -> Credential:
        assert name == "bench"
        return self._credential


async def stop_on_signal(proxy: Proxy) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            await proxy.aclose(1.0)


async def main(options: argparse.Namespace) -> None:
    ca = RunCA.generate("bench")
    Path(options.ca_out).write_bytes(ca.certificate_pem)
    rule = InjectionRule(
        credential="bench",
        hosts=("bench.test", "*.bench.test"),
        header="authorization",
        placeholder="placeholder-token",
        ports=tuple(options.ports),
    )
    trace = Trace(LineWriter(Path(options.log)))
    journal = Journal(Path(tempfile.mkdtemp(prefix="moat-bench-")) / "journal.jsonl")
    witness = Witness(journal)

    def record(event: ExchangeFinished) -> None:
        trace.add(event)
        witness.add(event)

    proxy = Proxy(
        policy=Policy(host_ports=frozenset(options.host_ports)),
        ca=ca,
        rules=(rule,) if not options.plain else (),
        credentials=OneCredential("real-secret-token"),
        upstream=Upstream(
            UpstreamOptions(
                ca_bundle=Path(options.upstream_ca),
                host_ports=frozenset(options.host_ports),
                connect_to={(host, port): ("127.0.0.1", port) for host in HOSTS for port in options.ports},
            )
        ),
        on_event=trace.add if options.no_journal else record,
        token=options.token,
        ready=trace.ready if options.no_journal else lambda: trace.ready() or witness.ready(),
        on_use=always_allowed if options.no_journal else witness.on_use,
    )
    listener = socket.create_server(("127.0.0.1", options.port), backlog=1024)
    async with anyio.create_task_group() as tasks:
        await tasks.start(trace.run)
        tasks.start_soon(witness.run)
        tasks.start_soon(stop_on_signal, proxy)
        await proxy.serve(listener)
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="a proxy to be measured")
    parser.add_argument("--port", type=int, default=9080)
    parser.add_argument("--ports", type=int, nargs="+", default=(18443, 18446), help="of the origins")
    parser.add_argument("--host-ports", type=int, nargs="*", default=(), help="open as `moat-host`, opaque")
    parser.add_argument("--upstream-ca", required=True)
    parser.add_argument("--ca-out", required=True)
    parser.add_argument("--token", default="token")
    parser.add_argument("--loop", choices=("asyncio", "uvloop", "trio"), default="uvloop")
    parser.add_argument("--log", default=str(Path(tempfile.gettempdir()) / "moat-bench-network.jsonl"))
    parser.add_argument("--plain", action="store_true", help="no injection, no scrubbing")
    parser.add_argument("--no-journal", action="store_true", help="network.jsonl alone, to see what it costs")
    parser.add_argument("--profile", help="write a cProfile of the whole run here")
    arguments = parser.parse_args()
    keep_freed_memory()
    backend = "trio" if arguments.loop == "trio" else "asyncio"
    backend_options = {} if arguments.loop == "trio" else {"use_uvloop": arguments.loop == "uvloop"}
    run = partial(anyio.run, main, arguments, backend=backend, backend_options=backend_options)
    if arguments.profile:
        import cProfile

        cProfile.runctx("run()", {"run": run}, {}, arguments.profile)
    else:
        run()
