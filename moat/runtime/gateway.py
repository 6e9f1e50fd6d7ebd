"""The proxy of one run with all that belongs to it: policy, CA, upstream, injection rules, trace.

The proxy itself is made at the first connection: its modules are a fifth of what a run imports, and a command
that is over in a moment does without. A longer one finds them imported.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

from moat.config import NetworkConfig, UpstreamConfig
from moat.errors import ConfigError
from moat.grants import CredentialSource
from moat.journal import Journal, LineWriter, read_lines
from moat.paths import Home
from moat.proxy.budget import Budget
from moat.proxy.certs import RunCA
from moat.proxy.events import ExchangeFinished
from moat.proxy.limits import Limits
from moat.proxy.policy import Policy
from moat.proxy.trace import Trace, from_record
from moat.rules import HostRule, parse_entry_host, parse_host_rule
from moat.runtime import trust
from moat.runtime.egress import RunEgress, Start
from moat.runtime.given import Granted
from moat.runtime.recording import Recording
from moat.runtime.witness import Witness, WitnessedSource

if TYPE_CHECKING:
    from moat.proxy.decider import Decider
    from moat.proxy.dialling import UpstreamOptions
    from moat.proxy.logins import LoginTable
    from moat.proxy.mcp import McpTable
    from moat.proxy.server import Proxy
    from moat.proxy.ssh import SshTunnel
    from moat.proxy.upstream import Upstream

_LONGEST = 3660.0  # seconds: more than `ask.timeout` can be, for the proxy's own deadline
_MOMENT = 0.25  # seconds, of which making the sandbox takes a third
_CLOSE_SECONDS = 2.0  # for exchanges that are under way when the sandbox is gone


def policy_of(network: NetworkConfig, opened: tuple[str, ...]) -> Policy:
    """The run's policy: its own rules first, then the hosts that its grants open. Raises ConfigError."""
    hosts: list[HostRule] = []
    problems: list[str] = []
    for host, rules in [*((r.host, r.rules) for r in network.rules), *((host, ()) for host in opened)]:
        try:
            hosts.append(parse_host_rule(host, rules))
        except ValueError as error:
            problems.append(f"network.rules: {error}")
    if problems:
        raise ConfigError(problems)
    return Policy(
        mode=network.policy,
        hosts=tuple(hosts),
        host_ports=frozenset(network.host),
        enforce=network.mode == "enforce",
    )


def budgets_of(network: NetworkConfig) -> tuple[Budget, ...]:
    """The run's budgets. Raises ConfigError."""
    try:
        return tuple(
            Budget(
                host=parse_entry_host(given.host) if given.host is not None else None,
                requests=given.requests,
                requests_per_minute=given.requests_per_minute,
                bytes_per_minute=given.bytes_per_minute,
                upload=given.upload,
                download=given.download,
                response=given.response,
            )
            for given in network.budgets
        )
    except ValueError as error:
        raise ConfigError([f"network.budget: {error}"]) from None


def upstream_proxy(config: UpstreamConfig, environ: Mapping[str, str] = os.environ) -> str | None:
    """The proxy that leads out of this host; one behind a proxy has it in HTTPS_PROXY."""
    return config.proxy or environ.get("HTTPS_PROXY") or environ.get("https_proxy") or None


def upstream_options(
    config: UpstreamConfig,
    host_ports: tuple[int, ...],
    environ: Mapping[str, str] = os.environ,
    *,
    own_port: Callable[[], int | None] = lambda: None,
) -> UpstreamOptions:
    """The user's own options."""
    from moat.proxy.dialling import UpstreamOptions

    return UpstreamOptions(
        ca_bundle=config.ca_bundle,
        extra_roots=b"".join(path.read_bytes() + b"\n" for path in trust.extra_bundles(environ)),
        proxy=upstream_proxy(config, environ),
        connect_to=config.connect_to,
        host_ports=frozenset(host_ports),
        own_port=own_port,
    )


def read_exchanges(home: Home, run_id: str) -> list[ExchangeFinished]:
    """The exchanges of a run, oldest first. Lines that are none are skipped."""
    found = []
    for record in read_lines(home.run(run_id) / "network.jsonl"):
        with contextlib.suppress(ValueError):
            found.append(from_record(record))
    return found


class Gateway:
    def __init__(
        self,
        *,
        run_id: str,
        network: NetworkConfig,
        upstream: UpstreamConfig,
        granted: Granted,
        credentials: CredentialSource | None,
        trace: Path,
        trace_limit: int,
        journal: Journal,
        start: Start,
        tunnels: Iterable[SshTunnel] = (),
        mcp: McpTable | None = None,
        logins: LoginTable | None = None,
        decider: Decider | None = None,
        patient: bool = False,
        on_event: Callable[[ExchangeFinished], None] = lambda _event: None,
        tell: Callable[[str], None] = lambda _text: None,
        own_port: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Listens nowhere yet. `on_event` hears of every exchange, after the records.

        own_port: where Moat itself listens on this machine, for users and not for runs.
        tell: gets a word for whoever watches, when the network closes because nothing can be recorded.
        patient: the decider waits for a person, and is asked about what no rule decides alone.
        Raises ConfigError, OSError.
        """
        self._on_event = on_event
        self._ca = RunCA.generate(run_id)
        self._writer = LineWriter(trace)
        self._witness = Witness(journal)
        self._journal = journal
        self._trace = Trace(
            self._writer,
            limit=trace_limit,
            on_full=lambda: journal.record("trace.full", bytes=trace_limit),
        )
        recording = Recording(journal, self._trace, self._witness, tell)
        policy, budgets = policy_of(network, granted.hosts), budgets_of(network)

        def make() -> tuple[Proxy, Upstream]:
            from moat.proxy.mcp import McpTable
            from moat.proxy.server import Proxy
            from moat.proxy.upstream import Upstream

            reach = Upstream(upstream_options(upstream, network.host, own_port=own_port))
            proxy = Proxy(
                policy=policy,
                ca=self._ca,
                rules=granted.rules,
                credentials=credentials and WitnessedSource(credentials, journal),
                upstream=reach,
                on_event=self._record,
                ready=recording.ready,
                on_use=recording.on_use,
                tunnels=tunnels,
                mcp=mcp or McpTable(),
                logins=logins,
                budgets=budgets,
                decider=decider,
                ask_every=not patient,
                limits=replace(Limits(), question_timeout=_LONGEST) if patient else Limits(),
                unreadable=network.unreadable,
                body_leaks=network.body_leaks,
            )
            return proxy, reach

        self._make = make
        # What may be wrong with rules and addresses is found before the command starts.
        at_once = granted.rules or upstream_proxy(upstream)
        self._made: tuple[Proxy, Upstream] | None = make() if at_once else None
        self.egress = RunEgress(self._open, start)
        self.ca_bundle = trust.sandbox_bundle(self._ca.certificate_pem)
        start("trace", self._trace.run)
        start("journal", self._witness.run)

    async def get_ready(self) -> None:
        """Import the proxy, once the command has lived for a moment."""
        await anyio.sleep(_MOMENT)
        with contextlib.suppress(OSError, ImportError):  # no descriptor is left: who needs it tries again
            await to_thread.run_sync(import_module, "moat.proxy.server", abandon_on_cancel=True)

    def _open(self) -> Proxy:
        """The proxy, from now on open. Raises ConfigError, OSError."""
        self._made = self._made or self._make()
        return self._made[0]

    @property
    def warned(self) -> int:
        """Exchanges so far that policy objects to and let through."""
        return self._witness.warned

    def flush(self) -> None:
        """Write the exchanges that are still in memory."""
        self._trace.flush()

    async def aclose(self) -> None:
        if self._made:
            proxy, upstream = self._made
            await proxy.aclose(_CLOSE_SECONDS)
            await upstream.aclose()
        self._trace.finish()
        self._witness.flush()
        self._writer.close()
        size, digest = self._writer.written
        self._journal.record("trace.closed", bytes=size, sha256=digest, dropped=self._trace.dropped)

    def _record(self, event: ExchangeFinished) -> None:
        self._trace.add(event)
        self._witness.add(event)
        self._on_event(event)
