"""`mcp:` of agent.yaml: MCP servers that the agent reaches through the proxy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class McpServer:
    """A remote server, or one on this machine (`http://localhost:PORT/…`)."""

    name: str
    url: str
    grant: str | None = None  # whose credential its requests carry: `mcp:linear`, `oauth:notion`
    header: str | None = None  # lower case; None: `authorization` with `Bearer`
    allow: tuple[str, ...] = ()  # tools (globs); empty: all that `deny` does not name
    deny: tuple[str, ...] = ()
    audit: bool = False  # tool calls are only recorded, never refused
