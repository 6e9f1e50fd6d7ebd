"""What of the user's Claude Code settings goes into a sandbox, and the files that those settings need.

From `~/.claude/settings.json` only what is named here: taste, the language, the status line, and the hooks
when the user asks for them (`claude.host_hooks` in ~/.moat/config.yaml). Everything else that a sandbox
should have is written by the user into `~/.moat/claude/settings.json`, which is taken as it is.

Commands of a status line or a hook run inside the sandbox. A script of theirs below `~/.claude` is carried
along; a command that needs anything else of the user's home is left out, and that is said.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moat.errors import StartError
from moat.runtime.plugins.json_file import UnreadableError, read_object
from moat.runtime.sandbox import HOME, HomeFile

USER_FILE = "~/.moat/claude/settings.json"
_HOST = (
    "theme",
    "tui",
    "language",
    "outputStyle",
    "alwaysThinkingEnabled",
    "attribution",
    "includeCoAuthoredBy",
    "spinnerTipsEnabled",
)
_PLUGIN_KEYS = ("enabledPlugins", "extraKnownMarketplaces")  # merged with those of the other sources
_SCRIPT_BYTES = 256 * 1024
SECRET_NAME = re.compile(r"token|secret|password|api_?key|credential", re.IGNORECASE)
SECRET_VALUE = re.compile(
    r"sk-[A-Za-z0-9_-]{8}|gh[a-z]_[A-Za-z0-9]{16}|github_pat_|glpat-|xox[a-z]-|AKIA[A-Z0-9]{12}"
    r"|eyJ[A-Za-z0-9_-]{16}|-----BEGIN |://[^/\s:@]+:[^/\s@]+@"
)


@dataclass(kw_only=True)
class Carried:
    """Settings for the sandbox, files next to them, and what had to be left out, each with its reason."""

    settings: dict[str, Any] = field(default_factory=dict)
    files: dict[str, HomeFile] = field(default_factory=dict)  # by path
    left_out: list[str] = field(default_factory=list)


def carried(user_home: Path, user_settings: Path, *, host_hooks: bool, skip_host: bool = False) -> Carried:
    """`user_settings` is the file that is taken whole. Raises StartError when that one is unusable."""
    found = Carried()
    if not skip_host:
        _of_host(found, user_home, host_hooks=host_hooks)
    try:
        own = read_object(user_settings)
    except UnreadableError as error:
        raise StartError(f"{USER_FILE}: {error}", hint=f"correct {USER_FILE}") from None
    if place := _secret_in(own):
        raise StartError(
            f"{USER_FILE}: {place} looks like a secret, and what a sandbox holds is no secret any more",
            hint="use a grant: the proxy adds the credential outside of the sandbox",
        )
    found.settings |= {name: value for name, value in own.items() if name not in _PLUGIN_KEYS}
    return found


def _of_host(found: Carried, user_home: Path, *, host_hooks: bool) -> None:
    try:
        host = read_object(user_home / ".claude" / "settings.json")
    except UnreadableError:
        return  # told where its plugins are read
    for name in _HOST:
        if isinstance(host.get(name), (str, bool, dict)) and not _secret_in(host[name]):
            found.settings[name] = host[name]
    scripts = _Scripts(user_home, found)
    line = host.get("statusLine")
    if isinstance(line, dict) and (command := scripts.command(line.get("command"), "the status line")):
        found.settings["statusLine"] = line | {"command": command}
    hooks = host.get("hooks")
    if host_hooks and isinstance(hooks, dict):
        kept = {event: scripts.hooks(groups, event) for event, groups in hooks.items()}
        found.settings["hooks"] = {event: groups for event, groups in kept.items() if groups}


class _Scripts:
    """Commands of the host as they work in the sandbox."""

    def __init__(self, user_home: Path, found: Carried) -> None:
        self._claude = user_home / ".claude"
        self._found = found
        name = re.escape(str(user_home))
        # The user's home in a command, and what follows it up to the end of the word.
        self._home = re.compile(
            rf"(?:~|\$HOME|\$\{{HOME\}}|{name})(?=[/\s\"';]|$)(?P<rest>[A-Za-z0-9._/+@-]*)"
        )

    def hooks(self, groups: object, event: str) -> list[dict[str, Any]]:
        """The groups of an event with those of their commands that can be carried."""
        kept = []
        for group in groups if isinstance(groups, list) else ():
            if isinstance(group, dict) and isinstance(group.get("hooks"), list):
                hooks = [new for hook in group["hooks"] if (new := self._hook(hook, event))]
                if hooks:
                    kept.append(group | {"hooks": hooks})
        return kept

    def _hook(self, hook: object, event: str) -> dict[str, Any] | None:
        if not isinstance(hook, dict) or hook.get("type") != "command":
            self._found.left_out.append(f"a {event} hook: only commands are carried into a sandbox")
            return None
        command = self.command(hook.get("command"), f"a {event} hook")
        return hook | {"command": command} if command and not _secret_in(hook) else None

    def command(self, command: object, what: str) -> str | None:
        """`command` with the sandbox's paths, its scripts noted to be carried; None: left out."""
        if not isinstance(command, str):
            return None
        if SECRET_VALUE.search(command):
            self._without(what, "its command holds a secret")
            return None
        files = {}
        for match in self._home.finditer(command):
            path = match["rest"].lstrip("/")
            script = self._script(path)
            if script is None:
                self._without(what, f"~/{path} is not in the sandbox")
                return None
            files[script.path] = script
        self._found.files |= files
        return self._home.sub(lambda match: HOME + match["rest"], command)

    def _script(self, path: str) -> HomeFile | None:
        """The file `path` below HOME, when it is a script of ~/.claude that may be shown."""
        place = self._claude.parent / path
        try:
            inside = place.resolve().relative_to(self._claude.resolve())
            fd = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError):
            return None
        with os.fdopen(fd, "rb") as file:
            info = os.fstat(fd)
            data = file.read(_SCRIPT_BYTES + 1) if stat.S_ISREG(info.st_mode) else b""
        private = inside.suffix == ".json" or inside.parts[:1] == ("projects",)
        if not data or len(data) > _SCRIPT_BYTES or private or ".." in path.split("/"):
            return None
        if SECRET_VALUE.search(data.decode("utf-8", "replace")):
            return None
        return HomeFile(path, data, 0o700 if info.st_mode & 0o100 else 0o600)

    def _without(self, what: str, reason: str) -> None:
        self._found.left_out.append(f"{what} is left out: {reason}")


def harmless(value: Any) -> Any:
    """`value` without everything in it that looks like a secret, by name or by shape."""
    if isinstance(value, dict):
        return {
            name: harmless(item)
            for name, item in value.items()
            if not SECRET_NAME.search(name) and not (isinstance(item, str) and SECRET_VALUE.search(item))
        }
    if isinstance(value, list):
        return [harmless(item) for item in value]
    return None if isinstance(value, str) and SECRET_VALUE.search(value) else value


def memory(user_home: Path) -> str:
    """The user's own `~/.claude/CLAUDE.md`, without lines that hold a secret; empty when there is none."""
    place = user_home / ".claude" / "CLAUDE.md"
    try:
        with place.open("rb") as file:
            text = file.read(_SCRIPT_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    left = "(a line that looks like a secret is not shown in the sandbox)"
    return "\n".join(left if SECRET_VALUE.search(line) else line for line in text.splitlines())


def _secret_in(value: Any, place: str = "") -> str | None:
    """Where in `value` something looks like a secret."""
    items: Mapping[str, Any] = {}
    if isinstance(value, dict):
        items = value
    elif isinstance(value, list):
        items = {str(number): item for number, item in enumerate(value)}
    elif isinstance(value, str) and SECRET_VALUE.search(value):
        return place or "a value"
    for name, item in items.items():
        if found := _secret_in(item, f"{place}.{name}".lstrip(".")):
            return found
    return None
