"""A marketplace with one plugin that does what plugins do: a command, a hook script, an MCP server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_GREET = """---
description: greets
---
GREETING {word} $ARGUMENTS
"""
_HOOK = """#!/bin/sh
echo "hook of {word} in $CLAUDE_PLUGIN_ROOT" >> hook.txt
touch "$CLAUDE_PLUGIN_ROOT/written" 2>/dev/null && echo "the plugin is writable" >> hook.txt
echo kept > "$HOME/.claude/plugins/data/probe" && echo "its state is writable" >> hook.txt
exit 0
"""
# bash alone: no sandbox image has more, and a plugin brings its own.
_MCP = """#!/bin/bash
while IFS= read -r line; do
  id=$(sed -n 's/.*"id":\\([0-9]*\\).*/\\1/p' <<<"$line")
  [ -z "$id" ] && continue
  case $line in
    *'"initialize"'*) r='{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},"serverInfo":{"name":"echo","version":"1"}}' ;;
    *'"tools/list"'*) r='{"tools":[{"name":"say","description":"says","inputSchema":{"type":"object","properties":{}}}]}' ;;
    *'"tools/call"'*) r='{"content":[{"type":"text","text":"TOOL-OF-THE-PLUGIN"}]}' ;;
    *) printf '{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"no"}}\\n' "$id"; continue ;;
  esac
  printf '{"jsonrpc":"2.0","id":%s,"result":%s}\\n' "$id" "$r"
done
"""


def write_plugin(
    place: Path, *, name: str = "hello", word: str = "ONE", version: str | None = "1.2.3"
) -> None:
    """The plugin's files. `word` is in what it says, so that one can tell versions apart."""
    manifest: dict[str, Any] = {
        "name": name,
        "mcpServers": {"echo": {"command": "${CLAUDE_PLUGIN_ROOT}/bin/mcp"}},
    }
    if version:
        manifest["version"] = version
    _write(place / ".claude-plugin" / "plugin.json", json.dumps(manifest))
    _write(place / "commands" / "greet.md", _GREET.format(word=word))
    hook = {"type": "command", "command": "${CLAUDE_PLUGIN_ROOT}/bin/hook"}
    _write(place / "hooks" / "hooks.json", json.dumps({"hooks": {"SessionStart": [{"hooks": [hook]}]}}))
    _write(place / "bin" / "hook", _HOOK.format(word=word), mode=0o755)
    _write(place / "bin" / "mcp", _MCP, mode=0o755)


def write_marketplace(
    place: Path, *, name: str = "tools", plugins: dict[str, Any] | None = None, word: str = "ONE"
) -> None:
    """A marketplace; without `plugins` it has `hello` in `plugins/hello`."""
    if plugins is None:
        plugins = {"hello": "./plugins/hello"}
        write_plugin(place / "plugins" / "hello", word=word)
    entries = [{"name": key, "source": source} for key, source in plugins.items()]
    manifest = {"name": name, "owner": {"name": "t"}, "plugins": entries}
    _write(place / ".claude-plugin" / "marketplace.json", json.dumps(manifest))


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
