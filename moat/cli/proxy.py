"""`moat proxy [options] [-- command]`: the proxy without a sandbox."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import anyio

from moat.cli.output import emit, say
from moat.cli.parser import Parser
from moat.cli.run import split_command
from moat.cli.start import passphrase
from moat.cli.trace import describe
from moat.config import HostRules, NetworkConfig, load_file, parse_host
from moat.errors import EXIT_INTERRUPTED, MoatError, StartError, UsageError
from moat.paths import Home, replace_file
from moat.proxy.events import ExchangeFinished
from moat.proxy.feed import Reader
from moat.proxy.trace import to_record
from moat.runtime.loop import keep_freed_memory, raise_limits, run_loop
from moat.runtime.outside import OutsideProxy, injected, open_outside
from moat.vault import Vault, open_vault

_MAX_PORT = 65535


def main(argv: Sequence[str]) -> int:
    flags, command = split_command(argv)
    options = _parser().parse_args(flags)
    if options.json and command:
        raise UsageError("--json and a command both need stdout", hint="--record FILE keeps the exchanges")
    if not 0 <= options.port <= _MAX_PORT:
        raise UsageError("--port must be between 0 and 65535")
    from moat.proxy.tls import ignore_names_that_are_none

    ignore_names_that_are_none()
    return _Serving(options, command).run()


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="moat proxy",
        usage="moat proxy [options] [-- command [argument...]]",
        description="Serve the proxy on a loopback port, without a sandbox: it adds credentials to the "
        "requests of whoever uses it, and applies a policy. With a command: run it with the proxy set up, "
        "until it ends. Nothing forces a program through it; for that there is `moat run`.",
    )
    add = parser.add_argument
    add("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    add("-g", "--grant", action="append", default=[], metavar="GRANT", help="credential to use (repeatable)")
    add("--policy", choices=("permissive", "strict"), help="default: permissive, or what --rules says")
    add("--rules", metavar="FILE", help="take `network:` from this file, written as agent.yaml")
    add("--allow-host", action="append", default=[], metavar="HOST", help="allow a host (repeatable)")
    add("--no-token", action="store_true", help="no password: every user of this machine may use the proxy")
    add("--ca-out", metavar="FILE", help="write the proxy's CA certificate to this file")
    add("--record", metavar="FILE", help="append every exchange to this file, one JSON object per line")
    add("--json", action="store_true", help="events on stdout, one JSON object per line")
    return parser


def _network(options: argparse.Namespace) -> NetworkConfig:
    found = load_file(Path(options.rules)).network if options.rules else NetworkConfig()
    if found.policy == "ask" and not options.policy:
        raise UsageError("policy ask is for runs: a proxy alone has nobody to ask", hint="--policy strict")
    opened = tuple(HostRules(parse_host(host)) for host in options.allow_host)
    return replace(found, policy=options.policy or found.policy, rules=(*found.rules, *opened))


class _Serving:
    """One call of the command: its proxy, and its command or the events on the screen."""

    def __init__(self, options: argparse.Namespace, command: tuple[str, ...]) -> None:
        """Asks for what has to be asked (a passphrase) before anything is open."""
        self._options = options
        self._command = command
        self._home = Home.from_environment()
        self._network = _network(options)
        self._grants = injected(options.grant)
        self._vault: Vault | None = open_vault(self._home, passphrase=passphrase()) if self._grants else None
        self._used: Counter[tuple[str, str]] = Counter()
        self._status = 0

    def run(self) -> int:
        raise_limits()
        keep_freed_memory()
        run_loop(self._serve())
        for (grant, host), count in self._used.most_common():
            say(f"{grant} went to {host} ({count} {'request' if count == 1 else 'requests'})")
        return self._status

    async def _serve(self) -> None:
        async with AsyncExitStack() as stack:
            opening = open_outside(
                self._home,
                self._network,
                self._vault,
                self._grants,
                port=self._options.port,
                token=not self._options.no_token,
                record=Path(self._options.record) if self._options.record else None,
            )
            try:
                outside = await stack.enter_async_context(opening)
            except OSError as error:
                raise StartError(f"the proxy cannot start: {_told(error)}") from error
            await self._attend(outside)

    async def _attend(self, outside: OutsideProxy) -> None:
        if self._options.ca_out:
            try:
                replace_file(Path(self._options.ca_out).absolute(), outside.proxy.certificate_pem)
            except OSError as error:
                raise StartError(f"{self._options.ca_out} cannot be written: {error.strerror}") from error
        for path in outside.left_out:
            say(f"note: ~/{path} is made in sandboxes only")
        async with anyio.create_task_group() as tasks:
            events = outside.proxy.events(buffer=10_000)
            tasks.start_soon(self._watch, events)
            if self._command:
                self._status = await self._child(outside.environment)
            else:
                self._announce(outside)
                self._status = await _stopped()
            events.close()  # what has come is still shown
        if self._options.json:
            _tell(event="ended")

    def _announce(self, outside: OutsideProxy) -> None:
        if self._options.json:
            proxy = outside.proxy
            _tell(event="ready", url=proxy.url, port=proxy.port, environment=dict(outside.environment))
            return
        for name, value in outside.environment.items():
            emit(f"export {name}={shlex.quote(value)}")
        sys.stdout.flush()
        say(f"proxy at 127.0.0.1:{outside.proxy.port}; Ctrl-C ends it")

    async def _watch(self, events: Reader) -> None:
        async for event in events:
            if not isinstance(event, ExchangeFinished):
                say(f"warning: {event.count} requests are not shown")
                continue
            host = event.url.partition("://")[2].partition("/")[0]
            self._used.update((grant, host) for grant in event.grants)
            if self._options.json:
                _tell(event="exchange", **to_record(event))
            elif not self._command:
                emit("\n".join(describe(to_record(event))))
                sys.stdout.flush()

    async def _child(self, environment: Mapping[str, str]) -> int:
        """Run the command to its end; its exit status, 128+N when signal N ended it."""
        inherited = {name: value for name, value in os.environ.items() if name.lower() != "all_proxy"}
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            try:
                process = await anyio.open_process(
                    self._command, stdin=None, stdout=None, stderr=None, env={**inherited, **environment}
                )
            except OSError as error:
                raise StartError(f"{self._command[0]}: {error.strerror}") from error

            async def pass_on() -> None:
                async for number in signals:
                    if number != signal.SIGINT:  # the terminal sends that one to the command itself
                        process.send_signal(number)

            async with anyio.create_task_group() as tasks, process:
                tasks.start_soon(pass_on)
                status = await process.wait()
                tasks.cancel_scope.cancel()
        return status if status >= 0 else 128 - status


def _told(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)


async def _stopped() -> int:
    """Wait for Ctrl-C or a termination."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async for number in signals:
            return EXIT_INTERRUPTED if number == signal.SIGINT else 128 + number
    raise MoatError("no signal can be received here")


def _tell(**event: object) -> None:
    emit(json.dumps(event))
    sys.stdout.flush()
