"""`claude.plugins` and `claude.marketplaces` of agent.yaml, and the words that every other source uses.

The file may come from a cloned repository. What it names is fetched by this machine, so a location is
taken only in a form that git cannot read as an option, as a command (`ext::`) or as a foreign helper.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from moat.config.check import Checker, Node
from moat.dataclass import dataclass
from moat.errors import UsageError
from moat.regex import regex

KINDS = {"github": "repo", "git": "url", "directory": "path"}  # source -> the key of its location

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_MARKETPLACE = regex(_NAME)
_PLUGIN = regex(rf"{_NAME}@{_NAME}")
_REPOSITORY = regex(r"[A-Za-z0-9][A-Za-z0-9-]{0,99}/[A-Za-z0-9_.-]{1,100}")
_REF = regex(r"[A-Za-z0-9_][A-Za-z0-9._/+-]{0,199}")
_SSH = regex(r"(?P<user>[A-Za-z0-9_][A-Za-z0-9._-]*)@(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*):(?P<path>[!-~]+)")
_HOST = regex(r"[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\]")
# Claude Code takes these from one owner only and drops others without a word.
_RESERVED = frozenset(
    (
        "agent-skills",
        "anthropic-agent-skills",
        "anthropic-marketplace",
        "anthropic-plugin-directory",
        "anthropic-plugins",
        "claude-code-marketplace",
        "claude-code-plugins",
        "claude-community",
        "claude-for-financial-services",
        "claude-for-legal",
        "claude-plugin-directory",
        "claude-plugins-community",
        "claude-plugins-official",
        "claude-tag-plugins",
        "financial-services-plugins",
        "first-party-plugins",
        "healthcare",
        "knowledge-work-plugins",
        "life-sciences",
    )
)
_RESERVED_OWNER = regex(
    r"(?:(?:https|ssh)://(?:git@)?github\.com/|git@github\.com:)?anthropics/[A-Za-z0-9_.-]+", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Marketplace:
    """Where plugins of Claude Code come from."""

    source: str  # `github`, `git`, `directory`
    location: str  # `owner/repo`, URL, or path
    ref: str | None = None  # branch, tag or commit; None: the default branch


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginsConfig:
    """The two keys, as they are in agent.yaml."""

    plugins: Mapping[str, bool] = field(default_factory=lambda: MappingProxyType({}))  # `name@marketplace`
    marketplaces: Mapping[str, Marketplace] = field(default_factory=lambda: MappingProxyType({}))


def check_plugin(text: str) -> str:
    """`name@marketplace`, unchanged. Raises UsageError."""
    if not _PLUGIN.fullmatch(text):
        raise UsageError(f"{text!r} is not a plugin, e.g. formatter@team-tools")
    return text


def check_marketplace_name(name: str, source: str, location: str) -> str:
    """The name, unchanged. Raises UsageError for one that Claude Code would ignore, or that is no name."""
    if not _MARKETPLACE.fullmatch(name):
        raise UsageError(f"{name!r} is not a name: letters, digits, `.`, `_` and `-`")
    if name.lower() in _RESERVED and (source == "directory" or not _RESERVED_OWNER.fullmatch(location)):
        raise UsageError(f"Claude Code keeps the name {name!r} for marketplaces of github.com/anthropics")
    return name


def check_repository(text: str) -> str:
    """`owner/repo` on github.com. Raises UsageError."""
    if not _REPOSITORY.fullmatch(text) or text.endswith(("/.", "/..")):
        raise UsageError(f"{text!r} is not a GitHub repository, e.g. owner/repo")
    return text.removesuffix(".git")


def check_ref(text: str) -> str:
    """A branch, tag or commit. Raises UsageError for what git could read as something else."""
    if not _REF.fullmatch(text) or ".." in text or "//" in text or text.endswith(("/", ".", ".lock")):
        raise UsageError(f"{text!r} is not a branch, tag or commit")
    return text


def check_git_url(text: str) -> str:
    """`https://…`, `ssh://…` or `user@host:path`, without a password. Raises UsageError."""
    if _SSH.fullmatch(text) and "::" not in text:
        return text
    why = "is not a git URL: https://host/repo.git, ssh://git@host/repo.git or git@host:repo.git"
    try:
        parts = urlsplit(text)
        port_is_number = parts.port is None or parts.port > 0
    except ValueError:
        raise UsageError(f"{redacted(text)!r} {why}") from None
    if parts.scheme not in {"https", "ssh"} or not port_is_number:
        raise UsageError(f"{redacted(text)!r} {why}")
    name = parts.netloc.rpartition("@")[2]
    host = name if name.endswith("]") else re.sub(r":[0-9]+$", "", name)
    if not _HOST.fullmatch(host) or not parts.path.strip("/") or not re.fullmatch(r"[!-~]+", text):
        raise UsageError(f"{redacted(text)!r} {why}")
    if parts.password is not None or (parts.scheme == "https" and parts.username is not None):
        raise UsageError(f"{redacted(text)} holds a credential; leave it to git's credential helper")
    if parts.username is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", parts.username):
        raise UsageError(f"{redacted(text)!r} {why}")
    if parts.query or parts.fragment:
        raise UsageError(f"{redacted(text)!r} has a query or a fragment; put a branch into `ref`")
    return text


def redacted(url: str) -> str:
    """`url` without a user name and password, for messages and for the sandbox."""
    return re.sub(r"//[^/\s]*@", "//", url)


class PluginsReader:
    """Reads the two keys; one method for each."""

    def __init__(self, check: Checker) -> None:
        self._check = check

    def plugins(self, node: Node) -> Mapping[str, bool]:
        found: dict[str, bool] = {}
        for name, name_node, value in self._check.pairs(node, "claude.plugins"):
            enabled = self._check.boolean(value, f"claude.plugins.{name}")
            if self._passes(check_plugin, name, name_node) is not None and enabled is not None:
                found[name] = enabled
        return MappingProxyType(found)

    def marketplaces(self, node: Node) -> Mapping[str, Marketplace]:
        found: dict[str, Marketplace] = {}
        for name, name_node, value in self._check.pairs(node, "claude.marketplaces"):
            marketplace = self._marketplace(value, name)
            if marketplace is None:
                continue
            try:
                check_marketplace_name(name, marketplace.source, marketplace.location)
            except UsageError as error:
                self._check.wrong(name_node, str(error))
                continue
            found[name] = marketplace
        return MappingProxyType(found)

    def _marketplace(self, node: Node, name: str) -> Marketplace | None:
        what = f"claude.marketplaces.{name}"
        known: dict[str, Callable[[Node], object]] = {
            "source": lambda value: self._check.choice(value, f"{what}.source", KINDS),
            "repo": lambda value: self._checked(value, f"{what}.repo", check_repository),
            "url": lambda value: self._checked(value, f"{what}.url", check_git_url),
            "path": lambda value: self._check.text(value, f"{what}.path"),
            "ref": lambda value: self._checked(value, f"{what}.ref", check_ref),
        }
        found: dict[str, Any] = self._check.fields(node, what, known, {})
        source = found.get("source")
        if node.id != "mapping" or (source is None and _has(node, "source")):
            return None  # told already
        if source is None:
            self._check.wrong(node, f"{what} needs `source`: {', '.join(KINDS)}")
            return None
        return self._complete(node, what, source, found)

    def _complete(self, node: Node, what: str, source: str, found: dict[str, Any]) -> Marketplace | None:
        """The keys that belong to `source`, and no others."""
        key = KINDS[source]
        foreign = [other for other in KINDS.values() if other != key and _has(node, other)]
        for other in foreign:
            self._check.wrong(node, f"{what}: `{other}` does not belong to source {source}; use `{key}`")
        if source == "directory" and _has(node, "ref"):
            self._check.wrong(node, f"{what}: a directory has no `ref`")
            return None
        if not _has(node, key):
            self._check.wrong(node, f"{what} needs `{key}`")
        if foreign or key not in found:
            return None
        return Marketplace(source=source, location=found[key], ref=found.get("ref"))

    def _checked(self, node: Node, what: str, check: Callable[[str], str]) -> str | None:
        text = self._check.text(node, what)
        return None if text is None else self._passes(check, text, node)

    def _passes(self, check: Callable[[str], str], text: str, node: Node) -> str | None:
        try:
            return check(text)
        except UsageError as error:
            self._check.wrong(node, str(error))
            return None


def _has(node: Node, key: str) -> bool:
    return node.id == "mapping" and any(str(name.value) == key for name, _ in node.value)
