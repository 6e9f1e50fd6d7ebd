"""`claude.mcp:` of agent.yaml: MCP servers that Claude Code starts itself, in the sandbox."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Any

from moat.config.check import Checker, Node
from moat.dataclass import dataclass
from moat.regex import regex

_NAME = regex(r"[a-z0-9][a-z0-9_-]{0,62}")
_NO_GRANT = (
    "a program in the sandbox gets no credential; list the grant under `grants:`, and the proxy adds it to "
    "what the program sends"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalMcpServer:
    """An MCP server that Claude Code itself starts in the sandbox (stdio)."""

    command: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    cwd: str | None = None  # as the sandbox sees it; None: the workspace


class LocalMcpReader:
    """Reads the mapping from names to servers."""

    def __init__(self, check: Checker) -> None:
        self._check = check

    def read(self, node: Node) -> MappingProxyType[str, LocalMcpServer]:
        found: dict[str, LocalMcpServer] = {}
        for name, place, value in self._check.pairs(node, "claude.mcp"):
            if not _NAME.fullmatch(name):
                self._check.wrong(place, f"{name!r} is not a name of an MCP server, e.g. my-server")
                continue
            server = self._server(value, f"claude.mcp.{name}")
            if server is not None:
                found[name] = server
        return MappingProxyType(found)

    def _server(self, node: Node, what: str) -> LocalMcpServer | None:
        known: dict[str, Callable[[Node], object]] = {
            "command": lambda value: self._check.text(value, f"{what}.command"),
            "args": lambda value: self._args(value, what),
            "env": lambda value: self._check.variables(value, f"{what}.env"),
            "cwd": lambda value: self._cwd(value, what),
        }
        found: dict[str, Any] = self._check.fields(node, what, known, {"grant": _NO_GRANT})
        if node.id == "mapping" and "command" not in {str(key.value) for key, _ in node.value}:
            self._check.wrong(node, f"{what} needs 'command'")
        return LocalMcpServer(**found) if found.get("command") else None

    def _args(self, node: Node, what: str) -> tuple[str, ...]:
        found = [
            self._check.text(item, f"an entry of {what}.args", integers=True)
            for item in self._check.items(node, f"{what}.args", "[--verbose]")
        ]
        return tuple(text for text in found if text is not None)

    def _cwd(self, node: Node, what: str) -> str | None:
        text = self._check.text(node, f"{what}.cwd")
        if text is not None and (not text.startswith("/") or ".." in text.split("/")):
            self._check.wrong(node, f"{what}.cwd must be a path of the sandbox, e.g. /workspace/tools")
            return None
        return text
