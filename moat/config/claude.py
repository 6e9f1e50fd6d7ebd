"""`claude:` of agent.yaml: plugins, marketplaces, local MCP servers and what of the host is shared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from moat.config.check import Checker, Node
from moat.config.local_mcp import LocalMcpReader, LocalMcpServer


@dataclass(frozen=True, slots=True, kw_only=True)
class Marketplace:
    source: str  # `github`, `git`, `directory`
    location: str  # `owner/repo`, URL, or path
    ref: str | None = None  # branch, tag or commit; None: the default branch


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaudeConfig:
    sync_logs: bool | None = None  # share conversations with the host; None: `moat claude` does
    plugins: Mapping[str, bool] = field(default_factory=lambda: MappingProxyType({}))  # `name@marketplace`
    marketplaces: Mapping[str, Marketplace] = field(default_factory=lambda: MappingProxyType({}))
    mcp: Mapping[str, LocalMcpServer] = field(default_factory=lambda: MappingProxyType({}))


_LATER = "not supported yet"


class ClaudeReader:
    """Reads the section; one method for each kind of value."""

    def __init__(self, check: Checker) -> None:
        self._check = check

    def read(self, node: Node) -> ClaudeConfig:
        known: dict[str, Callable[[Node], object]] = {
            "mcp": LocalMcpReader(self._check).read,
        }
        refused = dict.fromkeys(("plugins", "marketplaces", "sync_logs", "base_url"), _LATER)
        found: dict[str, Any] = self._check.fields(node, "claude", known, refused)
        return ClaudeConfig(**found)
