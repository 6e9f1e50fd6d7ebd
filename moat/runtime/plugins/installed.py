"""The plugins that Claude Code has installed on this machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from moat.dataclass import dataclass
from moat.runtime.plugins.json_file import UnreadableError, read_object

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledPlugin:
    path: Path
    version: str
    commit: str | None


class Installed:
    """`~/.claude/plugins/installed_plugins.json` below `user_home`; None: as if there were none."""

    def __init__(self, user_home: Path | None) -> None:
        self._cache = user_home / ".claude" / "plugins" if user_home else None
        self._plugins: dict[str, Any] = {}
        if self._cache is not None:
            try:
                found = read_object(self._cache / "installed_plugins.json").get("plugins")
            except UnreadableError:
                found = None  # Claude Code itself treats it as empty
            self._plugins = found if isinstance(found, dict) else {}

    def find(self, plugin: str, workspace: Path) -> InstalledPlugin | None:
        """What Claude Code would use in `workspace`: the project's own installation before the user's."""
        entries = self._plugins.get(plugin)
        fitting = [e for e in entries if _fits(e, workspace)] if isinstance(entries, list) else []
        for entry in sorted(fitting, key=lambda entry: entry.get("scope") == "user"):
            path = Path(str(entry.get("installPath")))
            version = str(entry.get("version"))
            if self._cache is None or not path.is_dir() or not _VERSION.fullmatch(version):
                continue
            if path.resolve().is_relative_to(self._cache.resolve()):
                commit = entry.get("gitCommitSha")
                return InstalledPlugin(
                    path=path.resolve(), version=version, commit=commit if isinstance(commit, str) else None
                )
        return None


def _fits(entry: object, workspace: Path) -> bool:
    if not isinstance(entry, dict):
        return False
    return entry.get("scope") == "user" or entry.get("projectPath") == str(workspace)
