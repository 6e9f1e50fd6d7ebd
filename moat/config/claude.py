"""`claude:` of agent.yaml: plugins, marketplaces, local MCP servers and what of the host is shared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class Marketplace:
    source: str  # `github`, `git`, `directory`
    location: str  # `owner/repo`, URL, or path
    ref: str | None = None  # branch, tag or commit; None: the default branch


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalMcpServer:
    """An MCP server that Claude Code itself starts in the sandbox (stdio)."""

    command: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    cwd: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaudeConfig:
    sync_logs: bool | None = None  # share conversations with the host; None: `moat claude` does
    plugins: Mapping[str, bool] = field(default_factory=lambda: MappingProxyType({}))  # `name@marketplace`
    marketplaces: Mapping[str, Marketplace] = field(default_factory=lambda: MappingProxyType({}))
    mcp: Mapping[str, LocalMcpServer] = field(default_factory=lambda: MappingProxyType({}))
