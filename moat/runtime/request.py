"""What is asked for: one run, as a value that can be sent to a supervisor as JSON.

Nothing secret is in a request; the way to the vault travels next to it (`launch`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from moat.config import (
    ContainerConfig,
    HooksConfig,
    McpServer,
    NetworkConfig,
    PluginsConfig,
    ServiceConfig,
    SnapshotConfig,
    VolumeConfig,
)
from moat.dataclass import dataclass
from moat.runtime import codec
from moat.runtime.plugins.fetch import Fetch
from moat.runtime.sandbox import HomeFile, Mount
from moat.runtime.size import Size

_NO_ENV: Mapping[str, str] = MappingProxyType({})
_NO_PORTS: Mapping[str, int] = MappingProxyType({})
_NO_SERVICES: Mapping[str, ServiceConfig] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """One command in one sandbox against one workspace."""

    argv: tuple[str, ...]
    workspace: Path  # absolute
    name: str | None = None  # a DNS label; None: `adjective-animal`
    grants: tuple[str, ...] = ()  # in order, without duplicates
    env: Mapping[str, str] = field(default_factory=lambda: _NO_ENV)  # may not override proxy or trust
    mounts: tuple[Mount, ...] = ()  # besides the workspace
    home_files: tuple[HomeFile, ...] = ()
    network: NetworkConfig = field(default_factory=NetworkConfig)
    runtime: str | None = None  # `docker`, `embedded`; None: chosen (MOAT_RUNTIME, engine, embedded)
    tty: Size | None = None  # None: plain pipes
    stdin: bool = False  # plain runs: somebody will send stdin
    hold: bool = False  # start the command only when the first viewer is there
    agent: str | None = None  # `claude`; a label in the record
    config: str | None = None  # digest of the agent.yaml that this came from
    dependencies: tuple[str, ...] = ()
    base_image: str | None = None
    rebuild: bool = False
    container: ContainerConfig = field(default_factory=ContainerConfig)
    pids: int = 1024
    ports: Mapping[str, int] = field(default_factory=lambda: _NO_PORTS)  # endpoint -> port in the sandbox
    mcp: tuple[McpServer, ...] = ()
    # A caller of the API asks for snapshots; the command line takes the file's word, whose default is yes.
    snapshots: SnapshotConfig = field(default_factory=lambda: SnapshotConfig(disabled=True))
    hooks: HooksConfig = field(default_factory=HooksConfig)
    services: Mapping[str, ServiceConfig] = field(default_factory=lambda: _NO_SERVICES)
    volumes: tuple[VolumeConfig, ...] = ()
    worktree: str | None = (
        None  # the branch, when the workspace is a worktree of Moat's; a label in the record
    )
    fetches: tuple[Fetch, ...] = ()  # what was fetched for this run before there was one
    plugins: PluginsConfig | None = None  # of Claude Code, to be made ready by the run itself
    writable_git: bool = False  # let the sandbox write hooks and configuration of the workspace's repository

    def to_json(self) -> dict[str, Any]:
        encoded: dict[str, Any] = codec.encode(self)
        return encoded

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunRequest:
        """The inverse of `to_json`, for JSON that a Moat process wrote."""
        return codec.decode(cls, value)
