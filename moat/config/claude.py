"""`claude:` of agent.yaml: plugins, marketplaces, local MCP servers and what of the host is shared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Any

from moat.config.check import Checker, Node
from moat.config.local_mcp import LocalMcpReader, LocalMcpServer
from moat.config.plugins import Marketplace, PluginsReader
from moat.dataclass import dataclass

_REFUSED = {
    "base_url": "a credential goes to its own host only; for another API set ANTHROPIC_BASE_URL in `env`",
    "llm-gateway": "Moat's proxy is the gateway: see network.rules",
    "subscription_type": "it is what the granted login says of itself",
    "rate_limit_tier": "it is what the granted login says of itself",
    "hooks": "hooks of this machine are the user's to share: claude.host_hooks in ~/.moat/config.yaml",
    "host_hooks": "belongs in ~/.moat/config.yaml; a workspace must not ask for the user's hooks",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaudeConfig:
    sync_logs: bool | None = None  # share conversations with the host; None: `moat claude` does
    plugins: Mapping[str, bool] = field(default_factory=lambda: MappingProxyType({}))  # `name@marketplace`
    marketplaces: Mapping[str, Marketplace] = field(default_factory=lambda: MappingProxyType({}))
    mcp: Mapping[str, LocalMcpServer] = field(default_factory=lambda: MappingProxyType({}))


class ClaudeReader:
    """Reads the section; one method for each kind of value."""

    def __init__(self, check: Checker) -> None:
        self._check = check

    def read(self, node: Node) -> ClaudeConfig:
        plugins = PluginsReader(self._check)
        known: dict[str, Callable[[Node], object]] = {
            "plugins": plugins.plugins,
            "marketplaces": plugins.marketplaces,
            "mcp": LocalMcpReader(self._check).read,
            "sync_logs": lambda value: self._check.boolean(value, "claude.sync_logs"),
        }
        found: dict[str, Any] = self._check.fields(node, "claude", known, _REFUSED)
        return ClaudeConfig(**found)
