"""The features of a run, each a part with the same few moments in its life.

    prepare   before there is a sandbox: what the part adds to it and to its proxy
    made      the sandbox exists, its command has not started
    started   the command runs
    resuming  the sandbox was paused and is about to go on
    ended     the command has ended; the sandbox is still there
    aclose    let go of everything; called whatever happened, newest part first

A run asks the parts in order. What raises in `prepare` or `made` keeps the command from starting, with
the error's own words; later moments must not raise for what does not concern the command.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from moat.config import HooksConfig
from moat.config.dependencies import service_named
from moat.dataclass import dataclass
from moat.grants import InjectionRule
from moat.journal import Journal
from moat.paths import Home
from moat.runtime.request import RunRequest
from moat.runtime.sandbox import HomeFile, Mount, Progress, Sandbox, ServiceSpec

if TYPE_CHECKING:
    from moat.proxy.mcp import McpTable
    from moat.proxy.ssh import SshTunnel
    from moat.vault import Vault

_NO_ENV: Mapping[str, str] = MappingProxyType({})
Start = Callable[[str, Callable[[], Awaitable[Any]]], None]  # (what it is, the task): owned by the run


def _unheard(_text: str) -> None:
    """There is nobody to hear it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What a part may know of its run, and whom it may ask."""

    id: str
    name: str
    request: RunRequest  # with its defaults filled in
    runtime: str  # `docker`, `embedded`
    home: Home
    directory: Path  # short private directory (0700) for sockets; removed with the run
    vault: Vault | None  # None: the run has no grants
    journal: Journal
    start: Start  # a task that lives as long as the run; its failure ends the run
    progress: Progress
    update: Callable[..., None]  # changes fields of the run's record
    tell: Callable[[str], None] = _unheard  # a line for whoever is attached, now or next


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """What one part adds to the sandbox and to the proxy of a run."""

    env: Mapping[str, str] = field(default_factory=lambda: _NO_ENV)  # the user's own `env` wins
    mounts: tuple[Mount, ...] = ()
    home_files: tuple[HomeFile, ...] = ()
    rules: tuple[InjectionRule, ...] = ()
    hosts: tuple[str, ...] = ()  # patterns that `network.policy: strict` opens
    host_ports: tuple[int, ...] = ()  # ports of this machine that the run may reach as moat-host
    endpoints: Mapping[str, str] = field(default_factory=lambda: _NO_ENV)  # name -> URL, for the record
    services: tuple[ServiceSpec, ...] = ()  # docker only
    tunnels: tuple[SshTunnel, ...] = ()  # passed on as bytes, without TLS of ours; their ports are captured
    argv: tuple[str, ...] = ()  # words behind the name of the command
    dependencies: tuple[str, ...] = ()  # of the image (docker), besides the user's own
    mcp: McpTable | None = None  # of at most one part


class Part:
    """A part that does nothing; a feature overrides the moments that it needs."""

    name = "part"

    async def prepare(self, run: RunContext) -> Addition:
        del run
        return Addition()

    async def made(self, sandbox: Sandbox) -> None: ...

    async def started(self) -> None: ...

    async def resuming(self) -> None: ...

    async def ended(self) -> None: ...

    async def aclose(self) -> None: ...


def parts_of(request: RunRequest) -> list[Part]:
    """The parts that this run needs, in the order in which they are asked. Imports only those."""
    from moat.runtime.git.guard import GitGuard
    from moat.runtime.listening import Listening
    from moat.runtime.snapshots.unfinished import Unfinished

    found: list[Part] = [Unfinished()]
    if not request.snapshots.disabled:
        from moat.runtime.snapshots.part import Snapshots

        found.append(Snapshots())  # before any other part touches the workspace
    found += [GitGuard(), Listening()]
    if request.ports:
        from moat.runtime.endpoints.part import PortsPart

        found.append(PortsPart())
    if request.volumes:
        from moat.runtime.volumes import Volumes

        found.append(Volumes())
    if request.dependencies or request.base_image or request.hooks != HooksConfig():
        from moat.runtime.deps.onhost import OnHost

        found.append(OnHost())
    if any(service_named(text) for text in request.dependencies):
        from moat.runtime.services import Services

        found.append(Services())
    if request.grants:
        from moat.runtime.expiry import ExpiryPart

        found.append(ExpiryPart())
    if any(name.startswith("ssh:") for name in request.grants):
        from moat.runtime.ssh.part import SshPart

        found.append(SshPart())
    if request.mcp:
        from moat.runtime.mcp import McpPart

        found.append(McpPart())
    if request.plugins is not None:
        from moat.runtime.plugins.part import PluginsPart

        found.append(PluginsPart())
    if request.agent == "claude":
        from moat.runtime.agents.claude_note import NotePart

        found.append(NotePart())
    return found


def together(additions: list[Addition]) -> Addition:
    """All additions as one; of two values for a variable the later one counts."""
    env: dict[str, str] = {}
    for addition in additions:
        env |= addition.env
    return Addition(
        env=env,
        mounts=tuple(item for a in additions for item in a.mounts),
        home_files=tuple(item for a in additions for item in a.home_files),
        rules=tuple(item for a in additions for item in a.rules),
        hosts=tuple(item for a in additions for item in a.hosts),
        host_ports=tuple(item for a in additions for item in a.host_ports),
        services=tuple(item for a in additions for item in a.services),
        mcp=next((a.mcp for a in additions if a.mcp is not None), None),
        tunnels=tuple(item for a in additions for item in a.tunnels),
        endpoints={name: url for a in additions for name, url in a.endpoints.items()},
        argv=tuple(item for a in additions for item in a.argv),
        dependencies=tuple(item for a in additions for item in a.dependencies),
    )
