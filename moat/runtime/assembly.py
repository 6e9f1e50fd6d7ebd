"""Everything between a run and its command: the grants, the parts, the proxy, and the sandbox that uses them.

The order matters. Credentials are read before anything is made, so that a missing one costs nothing; the
parts say what they add before the proxy and the sandbox are made with it; the sandbox comes last, because
it must not outlive its proxy for a moment.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

from moat.config import NetworkConfig, UserConfig
from moat.errors import UsageError
from moat.paths import private_dir
from moat.runtime.choice import runtime
from moat.runtime.gateway import Gateway
from moat.runtime.given import NOTHING, Granted, with_more
from moat.runtime.hooks import with_pre_run
from moat.runtime.parts import Addition, Part, RunContext, parts_of, together
from moat.runtime.rejected import Rejections
from moat.runtime.releasing import Resources
from moat.runtime.sandbox import Sandbox, SandboxSpec
from moat.runtime.variables import sandbox_environment

if TYPE_CHECKING:
    from moat.proxy.decider import Decider
    from moat.proxy.mcp import McpTable
    from moat.proxy.ssh import SshTunnel
    from moat.runtime.credentials import Credentials
    from moat.vault import Vault


class Assembly:
    """Makes the sandbox of one run, with all that it needs on the host."""

    def __init__(
        self,
        run: RunContext,
        user: UserConfig,
        resources: Resources,
        decider: Decider | None,
        *,
        patient: bool,
    ) -> None:
        """`resources` takes what has to be released. `patient`: the decider asks people."""
        self._run = run
        self._user = user
        self._resources = resources
        self._decider = decider
        self._patient = patient
        self.gateway: Gateway | None = None
        self.parts: list[Part] = []

    async def make(self) -> Sandbox:
        """Raises StartError, GrantError, VaultError, ConfigError, UsageError."""
        run = self._run
        given = _granted(run, run.vault) if run.vault else NOTHING
        maker = runtime(run.runtime)
        self._resources.add("launcher", maker.aclose)
        limits = run.request.container
        maker.get_ready(run.id, memory=limits.memory, pids=run.request.pids, cpus=limits.cpus)
        extra = await self._ask_parts()
        given = with_more(given, rules=extra.rules, hosts=extra.hosts)
        _check_ports(run.request.ports.values(), _captured(extra.tunnels))
        if extra.endpoints:
            run.update(endpoints=dict(extra.endpoints))
        self.gateway = await self._make_gateway(given, extra)
        sandbox = await maker.create(
            self._spec(given, self.gateway.ca_bundle, extra), self.gateway.egress, run.progress
        )
        self._resources.add("sandbox", sandbox.destroy)
        for part in self.parts:
            await part.made(sandbox)
        run.journal.record("sandbox.made", runtime=run.runtime)
        return sandbox

    async def started(self) -> None:
        """The command runs. Only now what its first connection needs is imported, not beside its start."""
        if self.gateway:
            self._run.start("imports", self.gateway.get_ready)
        for part in self.parts:
            await part.started()

    async def _ask_parts(self) -> Addition:
        """Let every part of the run prepare; what they add, as one."""
        additions = []
        for part in parts_of(self._run.request):
            self._resources.add(part.name, part.aclose)
            additions.append(await part.prepare(self._run))
            self.parts.append(part)
        return together(additions)

    async def _make_gateway(self, given: Granted, extra: Addition) -> Gateway:
        run = self._run
        rejections = Rejections(run.vault, run.journal, run.tell)
        credentials = self._credentials(run.vault, extra.mcp, rejections) if run.vault else None
        if credentials:
            await credentials.prepare(run.request.grants)
        gateway = Gateway(
            run_id=run.id,
            network=self._network(extra),
            upstream=self._user.upstream,
            granted=given,
            credentials=credentials,
            logins=credentials.login_table(given.logins) if credentials else None,
            trace=run.home.run(run.id) / "network.jsonl",
            trace_limit=self._user.journal.max_trace,
            journal=run.journal,
            start=run.start,
            tunnels=extra.tunnels,
            mcp=extra.mcp,
            decider=self._decider,
            patient=self._patient,
            on_event=rejections.add,
            tell=run.tell,
            own_port=self._own_port,
        )
        self._resources.add("proxy", gateway.aclose)
        return gateway

    def _own_port(self) -> int | None:
        """Where the endpoints of runs are; asked at each use of a port, because they may begin later."""
        from moat.runtime.endpoints.spawn import port_of  # not for a run that opens none

        return port_of(self._run.home)

    def _credentials(self, vault: Vault, mcp: McpTable | None, rejections: Rejections) -> Credentials:
        """Where the proxy gets credentials from."""
        from moat.runtime.credentials import Credentials  # AWS, OAuth…: not for a run without grants

        run = self._run
        source = Credentials(vault, self._user.upstream, run.journal, run.tell, run.id)
        self._resources.add("logins", source.aclose)
        rejections.get_another = source.rejected
        if mcp is not None:
            mcp.on_rejected = source.rejected
        return source

    def _network(self, extra: Addition) -> NetworkConfig:
        return dataclasses.replace(self._run.request.network, host=self._host_ports(extra))

    def _host_ports(self, extra: Addition) -> tuple[int, ...]:
        return tuple(dict.fromkeys((*self._run.request.network.host, *extra.host_ports)))

    def _spec(self, given: Granted, ca_bundle: bytes, extra: Addition) -> SandboxSpec:
        run, request = self._run, self._run.request
        # A part may have its own edition of a file.
        files = {file.path: file for file in (*given.files, *request.home_files, *extra.home_files)}
        return SandboxSpec(
            run_id=run.id,
            argv=with_pre_run((*request.argv[:1], *extra.argv, *request.argv[1:]), request.hooks.pre_run),
            workspace=request.workspace,
            ca_bundle=ca_bundle,
            # Not where the control socket lies: the runtime may show this directory to the sandbox.
            directory=private_dir(run.directory / "sandbox"),
            env=sandbox_environment(
                run_id=run.id,
                tty=request.tty is not None,
                placeholders={**given.env, **extra.env},
                user=request.env,
            ),
            mounts=(*request.mounts, *extra.mounts),
            home_files=tuple(files.values()),
            host_ports=self._host_ports(extra),
            ingress=bool(request.ports),
            captured=_captured(extra.tunnels),
            tty=request.tty,
            stdin=request.stdin,
            dependencies=tuple(dict.fromkeys((*request.dependencies, *extra.dependencies))),
            base_image=request.base_image,
            hooks=request.hooks,
            rebuild=request.rebuild,
            services=extra.services,
            memory=request.container.memory,
            cpus=request.container.cpus,
            pids=request.pids,
        )


def _granted(run: RunContext, vault: Vault) -> Granted:
    from moat.runtime import granted  # with all providers: not for a run without grants

    return granted.prepare(vault, run.request.grants, run.request.mcp)


def _check_ports(ports: Iterable[int], captured: tuple[int, ...]) -> None:
    """Behind a captured port is the run's proxy: a browser must not get there."""
    for port in ports:
        if port in captured:
            raise UsageError(
                f"an endpoint at port {port}, which leads out of the sandbox for an ssh grant",
                hint="let the server listen on another port",
            )


def _captured(tunnels: tuple[SshTunnel, ...]) -> tuple[int, ...]:
    """The ports of `tunnels` that are not captured anyway."""
    return tuple(sorted({tunnel.authority.port for tunnel in tunnels} - {80, 443}))
