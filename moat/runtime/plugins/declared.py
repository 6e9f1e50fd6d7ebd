"""Who names which plugin and which marketplace.

Four sources, the later one counts: `host`, Claude Code's own files on this machine
(`MOAT_SKIP_HOST_CLAUDE_SETTINGS=1` leaves them out); `user`, ~/.moat/claude/settings.json; `project`,
.claude/settings.json and .claude/settings.local.json of the workspace; `config`, agent.yaml.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from moat.config import RunConfig
from moat.config.plugins import check_marketplace_name, check_plugin
from moat.dataclass import dataclass
from moat.errors import UsageError
from moat.paths import Home
from moat.runtime.plugins.json_file import UnreadableError, read_object
from moat.runtime.plugins.source import OFFICIAL, Source, SourceError, configured, marketplace_source

_OFFICIAL = f"anthropics/{OFFICIAL}"
SKIP_HOST = "MOAT_SKIP_HOST_CLAUDE_SETTINGS"


class Origin(StrEnum):
    HOST = "host"
    USER = "user"
    PROJECT = "project"
    CONFIG = "config"

    @property
    def own(self) -> bool:
        """Whether the user wrote it on this machine; the workspace may be a stranger's."""
        return self in {Origin.HOST, Origin.USER}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A plugin that is switched on or off."""

    id: str  # `name@marketplace`
    enabled: bool
    origin: Origin
    file: str  # as a person would name it
    own: bool  # the user switched it on somewhere, too

    @property
    def name(self) -> str:
        return self.id.partition("@")[0]

    @property
    def marketplace(self) -> str:
        return self.id.partition("@")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A marketplace under its name."""

    name: str
    source: Source
    origin: Origin
    file: str
    own: bool  # fetched with the user's credentials: the user named this very place somewhere
    copy: Path | None = None  # the host's own clone or directory

    @property
    def title(self) -> str:
        """For a person, and for their answer: what it is, and not what a file calls it."""
        if self.source.kind == "directory":
            return os.path.realpath(self.source.location)
        return str(self.source) if self.source.remote else f"{self.source.location} {self.name}"

    def lent_to(self, workspace: Path) -> bool:
        """Whether it would come in as the user's: not what everybody has, nor the workspace itself."""
        if self.source.kind == "directory":
            outside = not Path(self.title).is_relative_to(os.path.realpath(workspace))
            return outside and self.origin is not Origin.PROJECT  # that one is refused
        return self.own and self.source.location.lower() != _OFFICIAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that keeps a plugin from working, and what to do about it."""

    text: str
    hint: str
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Declarations:
    choices: Mapping[str, Choice] = field(default_factory=dict)
    marketplaces: Mapping[str, Named] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    project: Mapping[str, bool] = field(default_factory=dict)  # what the workspace's own settings say
    project_files: tuple[Path, ...] = ()  # and which of them there are

    def borrowed(self, workspace: Path) -> Mapping[str, str]:
        """Marketplaces of the user's own that the workspace brings in, and the file of it that does.

        Either it names the place, or it switches on a plugin that the user has not switched on.
        """
        by_plugins = {c.marketplace: c.file for c in self.choices.values() if c.enabled and not c.own}
        asking = {
            named: by_plugins.get(name) if named.origin.own else named.file
            for name, named in self.marketplaces.items()
            if named.lent_to(workspace)
        }
        return {named.title: file for named, file in asking.items() if file}


def declarations(
    *,
    user_home: Path,
    home: Home,
    workspace: Path,
    config: RunConfig,
    environ: Mapping[str, str] = os.environ,
) -> Declarations:
    """Everything that is named, merged. Reads files, fetches nothing."""
    found = _Reader()
    if environ.get(SKIP_HOST) not in {"1", "true"}:
        found.known(user_home / ".claude" / "plugins" / "known_marketplaces.json")
        found.settings(user_home / ".claude" / "settings.json", Origin.HOST, "~/.claude/settings.json")
    found.settings(home.root / "claude" / "settings.json", Origin.USER, "~/.moat/claude/settings.json")
    for name in ("settings.json", "settings.local.json"):
        found.settings(workspace / ".claude" / name, Origin.PROJECT, f".claude/{name}", inside=workspace)
    found.config(config, workspace)
    return found.result()


class _Reader:
    def __init__(self) -> None:
        self._choices: dict[str, Choice] = {}
        self._marketplaces: dict[str, Named] = {}
        self._own: set[tuple[str, str]] = set()  # places that the user named
        self._problems: list[Problem] = []
        self._project: dict[str, bool] = {}
        self._project_files: list[Path] = []

    def known(self, path: Path) -> None:
        """What `claude plugin marketplace add` has written."""
        label = "~/.claude/plugins/known_marketplaces.json"
        for name, value in self._object(path, Origin.HOST, label).items():
            copy = value.get("installLocation") if isinstance(value, dict) else None
            place = Path(copy) if isinstance(copy, str) and copy.startswith("/") else None
            self._marketplace(name, value, Origin.HOST, label, base=path.parent, copy=place)

    def settings(self, path: Path, origin: Origin, label: str, inside: Path | None = None) -> None:
        value = self._object(path, origin, label, inside)
        if value and origin is Origin.PROJECT:
            self._project_files.append(path)
        base = path.parent.parent if origin is Origin.PROJECT else path.parent
        for name, item in _items(value.get("extraKnownMarketplaces")):
            self._marketplace(name, item, origin, label, base=base)
        for name, item in _items(value.get("enabledPlugins")):
            # A list or an object stands for "yes, with options" in Claude Code's own schema.
            self._choice(name, origin, label, enabled=bool(item))

    def config(self, config: RunConfig, workspace: Path) -> None:
        label = config.path.name if config.path else "agent.yaml"
        for name, marketplace in config.claude.marketplaces.items():
            self._put(name, configured(marketplace, workspace), Origin.CONFIG, label)
        for name, enabled in config.claude.plugins.items():
            self._choice(name, Origin.CONFIG, label, enabled=enabled)

    def result(self) -> Declarations:
        wanted = {choice.marketplace for choice in self._choices.values() if choice.enabled}
        if OFFICIAL in wanted and OFFICIAL not in self._marketplaces:
            source = Source(kind="github", location=_OFFICIAL)
            self._put(OFFICIAL, source, Origin.HOST, "Claude Code")
        named = {
            name: replace(item, own=item.origin.own or _place(item.source) in self._own)
            for name, item in self._marketplaces.items()
        }
        return Declarations(
            choices=self._choices,
            marketplaces=named,
            problems=tuple(self._problems),
            project=self._project,
            project_files=tuple(self._project_files),
        )

    def _object(
        self, path: Path, origin: Origin, label: str, inside: Path | None = None
    ) -> Mapping[str, Any]:
        try:
            return read_object(path, inside=inside)
        except UnreadableError as error:
            self._problem(f"{label}: {error}", f"correct {label}", origin)
            return {}

    def _marketplace(
        self, name: str, value: object, origin: Origin, label: str, *, base: Path, copy: Path | None = None
    ) -> None:
        source = value.get("source") if isinstance(value, dict) else None
        try:
            found = marketplace_source(source, base, own=origin.own)
        except SourceError as error:
            self._problem(f"{label}: marketplace {name[:100]!r}: {error}", f"correct {label}", origin)
            return
        self._put(name, found, origin, label, copy)

    def _put(self, name: str, source: Source, origin: Origin, label: str, copy: Path | None = None) -> None:
        try:
            check_marketplace_name(name, source.kind, source.location)
        except UsageError as error:
            self._problem(f"{label}: {error}", f"rename the marketplace in {label}", origin)
            return
        before = self._marketplaces.get(name)
        if copy is None and before is not None and before.source == source:
            copy = before.copy  # named again, the very same place
        if origin.own:
            self._own.add(_place(source))
        self._marketplaces[name] = Named(
            name=name, source=source, origin=origin, file=label, own=origin.own, copy=copy
        )

    def _choice(self, name: str, origin: Origin, label: str, *, enabled: bool) -> None:
        try:
            check_plugin(name)
        except UsageError as error:
            self._problem(f"{label}: {error}", f"correct {label}", origin)
            return
        if origin is Origin.PROJECT:
            self._project[name] = enabled
        before = self._choices.get(name)
        own = enabled if origin.own else before is not None and before.own
        self._choices[name] = Choice(id=name, enabled=enabled, origin=origin, file=label, own=own)

    def _problem(self, text: str, hint: str, origin: Origin) -> None:
        self._problems.append(Problem(text=text, hint=hint, origin=origin))


def _place(source: Source) -> tuple[str, str]:
    """What two names of one place have in common: links, case and `.git` do not make another one."""
    if source.kind == "directory":
        return source.kind, os.path.realpath(source.location)
    urls = source.urls or (source.location,)
    return source.kind, urls[0].removesuffix("/").removesuffix(".git").lower()


def _items(value: object) -> Iterator[tuple[str, Any]]:
    return iter(value.items()) if isinstance(value, dict) else iter(())
