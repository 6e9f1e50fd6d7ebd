"""Credentials of this machine's user that could be granted: variables of the shell, logins of other tools."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from types import MappingProxyType

from moat.dataclass import dataclass
from moat.errors import ConfigError, GrantError
from moat.grants import Grant, Secret
from moat.vault.codex_login import PLACE, auth_file
from moat.vault.npmrc import registries
from moat.vault.providers import Entry, provider
from moat.vault.providers.declared import Declared
from moat.vault.providers.npm import PATHS, ROUTES
from moat.vault.toolfile import read_json

_EMPTY: Mapping[str, str] = MappingProxyType({})
_MAX_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class _Login:
    """What tells of a login that its own wizard takes over."""

    variables: tuple[str, ...]
    directory: str
    file: str
    words: tuple[bytes, ...]  # the file of a tool that is logged in has one of them
    moved: str = ""  # the variable that names another directory

    @property
    def place(self) -> str:
        return f"{self.directory}/{self.file}"


_LOGINS: Mapping[str, _Login] = MappingProxyType(
    {
        "anthropic": _Login(
            ("ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"),
            "~/.claude",
            ".credentials.json",
            (b"claudeAiOauth",),
            "CLAUDE_CONFIG_DIR",
        ),
        "aws": _Login(("AWS_ACCESS_KEY_ID", "AWS_PROFILE"), "~/.aws", "config", (b"[default]", b"[profile ")),
        "docker": _Login(
            (), "~/.docker", "config.json", (b'"auth"', b'"credsStore"', b'"credHelpers"'), "DOCKER_CONFIG"
        ),
        "github": _Login(
            ("GITHUB_TOKEN", "GH_TOKEN"), "~/.config/gh", "hosts.yml", (b"github.com:",), "GH_CONFIG_DIR"
        ),
        "openai": _Login(
            ("OPENAI_API_KEY", "CODEX_API_KEY"),
            "~/.codex",
            "auth.json",
            (b'"refresh_token"', b'"OPENAI_API_KEY": "', b'"OPENAI_API_KEY":"'),
            "CODEX_HOME",
        ),
        "gemini": _Login(
            ("GEMINI_API_KEY", "GOOGLE_API_KEY"), "~/.gemini", "oauth_creds.json", (b'"refresh_token"',)
        ),
    }
)

# Files of tools whose token is a provider's own, and its whole wizard.
_FILES: Mapping[str, str] = MappingProxyType({"graphite": "~/.config/graphite/auth", "npm": "~/.npmrc"})


@dataclass(frozen=True, slots=True)
class Found:
    where: str  # `OPENAI_API_KEY`, `~/.npmrc`
    secret: Secret
    metadata: Mapping[str, str] = field(
        default_factory=lambda: _EMPTY
    )  # what else is known there, nothing secret


def in_environment(provider: Declared, environment: Mapping[str, str] = os.environ) -> Found | None:
    """The first variable that holds a token, without white space: a paste may have been wrapped."""
    for name in provider.sources:
        if token := "".join(environment.get(name, "").split()):
            return Found(name, Secret(token))
    return None


def in_files(grant: Grant) -> Found | None:
    """What another tool on this machine keeps for `grant`. Raises GrantError when it cannot be read."""
    importer = _IMPORTERS.get(grant.name)
    return None if importer is None else importer(grant.scope)


def hint(row: Entry) -> str:
    """Where this machine has a credential for a provider, or "". Looks quickly and asks no program."""
    if row.name in _LOGINS:
        return _login(_LOGINS[row.name])
    try:
        declared = provider(row.name) if row.injected else None
        if isinstance(declared, Declared) and (found := in_environment(declared)):
            return found.where
        found = in_files(Grant(row.name))
    except (GrantError, ConfigError):
        return ""
    return found.where if found else ""


def places(row: Entry) -> tuple[str, ...]:
    """Where a machine may have a credential for a provider: variables of the shell, then files."""
    if row.name in _LOGINS:
        login = _LOGINS[row.name]
        return (*login.variables, login.place)
    declared = provider(row.name)
    variables = declared.sources if isinstance(declared, Declared) else ()
    return (*variables, *((_FILES[row.name],) if row.name in _FILES else ()))


def _login(login: _Login) -> str:
    for name in login.variables:
        if os.environ.get(name):
            return name
    path = f"{os.environ.get(login.moved) or login.directory}/{login.file}"
    try:
        with Path(path).expanduser().open("rb") as file:
            data = file.read(_MAX_BYTES)
    except OSError:
        return ""
    return path if any(word in data for word in login.words) else ""


def about(grant: Grant) -> Mapping[str, str]:
    """What files of this machine say of a grant besides its secret: the routes of an npm registry."""
    found = in_files(grant)
    return found.metadata if found is not None else _EMPTY


def _codex(scope: str | None) -> Found | None:
    """Codex's API key. Its ChatGPT login is another thing (`codex_login`)."""
    del scope
    key = _fields(auth_file()).get("OPENAI_API_KEY")
    return Found(PLACE, Secret(key)) if isinstance(key, str) and key else None


def _graphite(scope: str | None) -> Found | None:
    """What `gt auth` has written: into a file of its own by now, into another one before."""
    del scope
    base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "graphite"
    for name in ("auth", "user_config"):
        token = _fields(base / name).get("authToken")
        if isinstance(token, str) and token:
            return Found(_FILES["graphite"].replace("auth", name), Secret(token))
    return None


def _npmrc(scope: str | None) -> Found | None:
    host = scope or "registry.npmjs.org"
    for registry in registries():
        if registry.host == host:
            facts = {PATHS: "\n".join(registry.paths), ROUTES: "\n".join(registry.routes)}
            return Found(_FILES["npm"], registry.token, facts)
    return None


def _fields(path: Path) -> Mapping[str, object]:
    return read_json(path, hint="log in with that tool again") or _EMPTY


_IMPORTERS: Mapping[str, Callable[[str | None], Found | None]] = MappingProxyType(
    {"graphite": _graphite, "npm": _npmrc, "openai": _codex}
)
