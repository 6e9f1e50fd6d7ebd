"""The files in the sandbox's HOME that make Claude Code start without onboarding, login or dialogs.

The user's own `~/.claude.json` contributes a few named keys that hold identity and taste. It also holds
tokens, histories and paths of other projects; none of that goes in, and a value that looks like a secret
is dropped wherever it stands.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moat.config import LocalMcpServer
from moat.grants import CredentialInfo, CredentialKind
from moat.runtime.agents.claude_settings import Carried, harmless, memory
from moat.runtime.sandbox import WORKSPACE, HomeFile
from moat.vault.providers import provider

_HOST_KEYS = (
    "userID",
    "anonymousId",
    "firstStartTime",
    "numStartups",
    "theme",
    "lastOnboardingVersion",
    "lastReleaseNotesSeen",
    "sonnet45MigrationComplete",
    "opus45MigrationComplete",
    "opusProMigrationComplete",
    "thinkingMigrationComplete",
    "clientDataCache",
    "cachedGrowthBookFeatures",
)
# Without it requests of a subscription lack the organization; with an API key it would be a lie.
_SUBSCRIPTION_KEYS = ("oauthAccount",)
CLAUDE_MD = ".claude/CLAUDE.md"
_MAX_BYTES = 4_000_000  # ~/.claude.json grows with every project; more than this is not read


def home_files(
    home: Path,
    credential: CredentialInfo,
    carried: Carried,
    enabled: Mapping[str, bool],
    *,
    ask: bool,
    servers: Mapping[str, LocalMcpServer],
) -> tuple[HomeFile, ...]:
    """`~/.claude.json` and everything in `~/.claude` that is not a plugin's.

    The credential's own files are its provider's.
    """
    own = memory(home)
    return (
        HomeFile(".claude.json", _json(state(home, credential) | _mcp_servers(servers))),
        HomeFile(".claude/settings.json", _json(settings(carried.settings, enabled, ask=ask))),
        *carried.files.values(),
        *([HomeFile(CLAUDE_MD, own.encode())] if own else []),
    )


def state(home: Path, credential: CredentialInfo) -> dict[str, Any]:
    """`~/.claude.json`: the user's own keys, then those that answer every question beforehand."""
    host = _read(home / ".claude.json")
    subscription = credential.kind is CredentialKind.OAUTH
    names = _HOST_KEYS + (_SUBSCRIPTION_KEYS if subscription else ())
    found = {name: harmless(host[name]) for name in names if name in host}
    found |= {
        "hasCompletedOnboarding": True,
        "hasSeenAutoDefaultNudge": True,  # else "make auto mode your default?", whose default is yes
        "hasSeenAutoDefaultNotice": True,
        "officialMarketplaceAutoInstallAttempted": True,
        "officialMarketplaceAutoInstalled": True,
        "projects": {
            WORKSPACE: {
                "hasTrustDialogAccepted": True,
                "hasCompletedProjectOnboarding": True,
                "hasClaudeMdExternalIncludesWarningShown": True,
            }
        },
    }
    if not subscription:
        found["customApiKeyResponses"] = {"approved": [approved_key(credential)], "rejected": []}
    return found


def _mcp_servers(servers: Mapping[str, LocalMcpServer]) -> dict[str, Any]:
    """The user-scope servers of MCP; those behind the proxy are added when their placeholders are made."""
    if not servers:
        return {}
    return {"mcpServers": {name: _mcp_server(server) for name, server in servers.items()}}


def _mcp_server(server: LocalMcpServer) -> dict[str, Any]:
    argv = [server.command, *server.args]
    if server.cwd:  # Claude Code 2.1.330 knows `cwd` and does not go there
        argv = ["/bin/sh", "-c", 'cd -- "$0" && exec "$@"', server.cwd, *argv]
    return {"type": "stdio", "command": argv[0], "args": argv[1:], "env": dict(server.env)}


def approved_key(credential: CredentialInfo) -> str:
    """The last 20 characters of the placeholder: by them Claude Code knows a key that it may use.

    They are the same in every run, whatever the run's own part of the placeholder is.
    """
    return provider(credential.name).placeholder(credential, "0" * 32)[-20:]


def settings(carried: Mapping[str, Any], enabled: Mapping[str, bool], *, ask: bool) -> dict[str, Any]:
    """`~/.claude/settings.json`: the user's, then what Moat must decide.

    `enabled`: plugins. `ask`: confirm each tool, as Claude Code does by itself.
    """
    found: dict[str, Any] = {"tui": "default"} | dict(carried)  # no offer to try the fullscreen renderer
    if enabled:
        found["enabledPlugins"] = dict(enabled)
    given = found.get("permissions")
    # Said here as well as on the command line: Claude Code may start itself anew without its flags.
    mode = {"defaultMode": "default" if ask else "bypassPermissions"}
    found["permissions"] = (given if isinstance(given, dict) else {}) | mode
    if not ask:
        found["skipDangerousModePermissionPrompt"] = True
        found["enableAllProjectMcpServers"] = True  # else a dialog for each server in .mcp.json
    return found


def _read(path: Path) -> dict[str, Any]:
    """A JSON object of the user's; an unreadable, huge or broken one counts as empty."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        value = json.loads(data) if len(data) <= _MAX_BYTES else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()
