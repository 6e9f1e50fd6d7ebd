"""What the configuration files say, checked and frozen. Making one of these reads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from moat.chord import DEFAULT, Chord
from moat.config.ask import AskConfig
from moat.config.claude import ClaudeConfig
from moat.config.endpoints import EndpointsConfig
from moat.config.image import ContainerConfig, HooksConfig, ServiceConfig, VolumeConfig
from moat.config.journal import JournalConfig
from moat.config.mcp import McpServer
from moat.config.network import NetworkConfig
from moat.config.output import OutputConfig
from moat.config.snapshots import SnapshotConfig
from moat.dataclass import dataclass

_NO_ENV: Mapping[str, str] = MappingProxyType({})
_NO_PORTS: Mapping[str, int] = MappingProxyType({})
_NO_SERVICES: Mapping[str, ServiceConfig] = MappingProxyType({})
_NO_DETOURS: Mapping[tuple[str, int], tuple[str, int]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class MountConfig:
    source: Path  # absolute, exists
    target: str  # absolute and normalised
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """`agent.yaml`; the defaults stand for a workspace without one."""

    path: Path | None = None  # the file that was read
    name: str | None = None
    agent: str | None = None  # a label in `moat list`
    grants: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=lambda: _NO_ENV)
    mounts: tuple[MountConfig, ...] = ()
    network: NetworkConfig = field(default_factory=NetworkConfig)
    runtime: Literal["docker", "embedded"] | None = None
    command: tuple[str, ...] = ()
    dependencies: tuple[str, ...] = ()
    base_image: str | None = None
    interactive: bool = False  # `moat run` gives the command a terminal
    ports: Mapping[str, int] = field(default_factory=lambda: _NO_PORTS)  # endpoint -> port in the sandbox
    mcp: tuple[McpServer, ...] = ()
    claude: ClaudeConfig = field(default_factory=ClaudeConfig)
    snapshots: SnapshotConfig = field(default_factory=SnapshotConfig)
    hooks: HooksConfig = field(default_factory=HooksConfig)
    services: Mapping[str, ServiceConfig] = field(default_factory=lambda: _NO_SERVICES)
    volumes: tuple[VolumeConfig, ...] = ()
    container: ContainerConfig = field(default_factory=ContainerConfig)

    @property
    def needed_grants(self) -> tuple[str, ...]:
        """What the file asks for by name, and what its MCP servers need."""
        return tuple(dict.fromkeys((*self.grants, *(s.grant for s in self.mcp if s.grant))))

    @property
    def demanding(self) -> bool:
        """Whether it could ask for what is the user's own; `runtime.demands` knows what of it does."""
        asked = self.grants or self.mcp or self.mounts or self.network.host or self.package_sources
        return bool(asked or self.making)

    @property
    def package_sources(self) -> frozenset[str]:
        """`npm`, `pip`, `uv`: of which it names any package; all else is a row of Moat's own table."""
        return frozenset(name.partition(":")[0] for name in self.dependencies if ":" in name)

    @property
    def making(self) -> bool:
        """Whether it names images, or commands that run while one is made: what an engine does for it."""
        named = self.base_image or any(service.image for service in self.services.values())
        return bool(named or self.hooks.post_build_root or self.hooks.post_build)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamConfig:
    """How Moat's proxy reaches the internet. TLS is verified for the original name in every case."""

    ca_bundle: Path | None = None  # PEM; trusted besides the system's roots
    proxy: str | None = None  # `http://[user:password@]host:port`
    # (host, port) -> (address, port)
    connect_to: Mapping[tuple[str, int], tuple[str, int]] = field(default_factory=lambda: _NO_DETOURS)


@dataclass(frozen=True, slots=True, kw_only=True)
class UserClaudeConfig:
    host_hooks: bool = False  # hooks of ~/.claude/settings.json run in sandboxes too


@dataclass(frozen=True, slots=True, kw_only=True)
class UserWorkspacesConfig:
    # What an agent.yaml asks for of the user's own, unconfirmed, where nobody can be asked about it.
    unconfirmed: Literal["pass", "refuse"] = "pass"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserConfig:
    """`~/.moat/config.yaml`; the defaults stand for no file."""

    path: Path | None = None
    ask: AskConfig = field(default_factory=AskConfig)
    upstream: UpstreamConfig = field(default_factory=UpstreamConfig)
    endpoints: EndpointsConfig = field(default_factory=EndpointsConfig)
    journal: JournalConfig = field(default_factory=JournalConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    claude: UserClaudeConfig = field(default_factory=UserClaudeConfig)
    workspaces: UserWorkspacesConfig = field(default_factory=UserWorkspacesConfig)
    chord: Chord = DEFAULT
