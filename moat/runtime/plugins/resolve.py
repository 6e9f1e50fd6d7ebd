"""Every plugin ready to be shown, or the reason why it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field, replace
from enum import StrEnum
from pathlib import Path

from moat.config.mounts import hidden_from, refused_source
from moat.config.plugins import redacted
from moat.dataclass import dataclass
from moat.errors import StartError
from moat.runtime.plugins.declared import Choice, Declarations, Named, Origin, Problem
from moat.runtime.plugins.fetch import Fetch
from moat.runtime.plugins.git import Access, FetchError, cloned, fetched
from moat.runtime.plugins.installed import Installed
from moat.runtime.plugins.lock import OWN, PUBLIC, Lock
from moat.runtime.plugins.manifest import ManifestError, MarketplaceManifest, read_marketplace, read_version
from moat.runtime.plugins.source import OFFICIAL, Source, unfetched
from moat.runtime.plugins.tree import TreeError, leaves
from moat.runtime.plugins.trees import Trees

_DIGITS = 12  # of a commit or a digest that stands for a version


class State(StrEnum):
    READY = "ready"
    DISABLED = "disabled"
    MISSING = "missing"
    NOT_FETCHED = "not fetched"  # nothing is wrong; nobody was allowed to fetch it now


@dataclass(frozen=True, slots=True, kw_only=True)
class Market:
    """A marketplace as far as it is known."""

    named: Named
    tree: Path | None = None
    commit: str | None = None
    manifest: MarketplaceManifest | None = None
    state: State = State.READY


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    choice: Choice
    state: State
    version: str = ""
    commit: str | None = None
    tree: Path | None = None  # its files on this machine
    inside: str | None = None  # where it is in its marketplace's tree, when that is a directory


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    plugins: tuple[Plugin, ...] = ()
    marketplaces: tuple[Market, ...] = ()
    problems: tuple[Problem, ...] = ()
    fetches: tuple[Fetch, ...] = ()


def check_complete(resolved: Resolved) -> None:
    """Raises StartError for what is missing, unless only this machine's own Claude Code names it."""
    fatal = [problem for problem in resolved.problems if problem.origin is not Origin.HOST]
    if fatal:
        hints = dict.fromkeys(line for problem in fatal for line in problem.hint.splitlines())
        raise StartError("\n".join(problem.text for problem in fatal), hint="\n".join(hints))


class _UnusableError(Exception):
    def __init__(self, text: str, hint: str) -> None:
        super().__init__(text)
        self.hint = hint


class _NotFetchedError(Exception):
    """It would have to be fetched, and that was not wanted."""


def _allow(_: Origin) -> None:
    """Everybody may have something fetched."""


@dataclass(kw_only=True)
class Resolver:
    """Brings together what is named and what is there; fetches what is missing unless `offline`."""

    declared: Declarations
    trees: Trees
    lock: Lock
    access: Access  # of the user; what the workspace names gets less
    installed: Installed
    workspace: Path
    refresh: bool = False  # look again where a branch or tag is now
    offline: bool = False
    before_fetch: Callable[[Origin], None] = _allow  # may raise: who named what is about to be fetched
    progress: Callable[[str], None] = lambda _: None
    _markets: dict[str, Market] = field(default_factory=dict)
    _failed: dict[str, _UnusableError] = field(default_factory=dict)
    _fetches: list[Fetch] = field(default_factory=list)

    def resolve(self) -> Resolved:
        """All plugins and marketplaces. Raises only what `before_fetch` raises."""
        problems = list(self.declared.problems)
        plugins = []
        for choice in sorted(self.declared.choices.values(), key=lambda choice: choice.id):
            try:
                plugins.append(self._plugin(choice))
            except _NotFetchedError:
                plugins.append(Plugin(choice=choice, state=State.NOT_FETCHED))
            except _UnusableError as error:
                problems.append(Problem(text=str(error), hint=error.hint, origin=choice.origin))
                plugins.append(Plugin(choice=choice, state=State.MISSING))
        named = sorted(self.declared.marketplaces.values(), key=lambda named: named.name)
        markets = [self._shown(item, problems) for item in named]
        return Resolved(
            plugins=tuple(plugins),
            marketplaces=tuple(markets),
            problems=tuple({problem.text: problem for problem in problems}.values()),
            fetches=tuple(self._fetches),
        )

    def _shown(self, named: Named, problems: list[Problem]) -> Market:
        """A marketplace. One that no plugin needs is only looked at, unless it was asked for by name."""
        asked = named.origin in {Origin.USER, Origin.CONFIG}
        try:
            return self._market(named) if asked or named.name in self._markets else self._known(named)
        except _NotFetchedError:
            return Market(named=named, state=State.NOT_FETCHED)
        except _UnusableError as error:
            if asked:
                problems.append(Problem(text=str(error), hint=error.hint, origin=named.origin))
            return Market(named=named, state=State.MISSING)

    # --- plugins ----------------------------------------------------------------------------------

    def _plugin(self, choice: Choice) -> Plugin:
        if not choice.enabled:
            return Plugin(choice=choice, state=State.DISABLED)
        named = self.declared.marketplaces.get(choice.marketplace)
        if named is None:
            raise _UnusableError(
                f"plugin {choice.id} ({choice.file}): no marketplace {choice.marketplace!r} is known",
                f"name it under claude.marketplaces in agent.yaml, or `claude plugin marketplace add` it\n"
                f'or switch the plugin off: claude.plugins: {{"{choice.id}": false}}',
            )
        if named.origin is Origin.HOST and (place := self.installed.find(choice.id, self.workspace)):
            return self._of_host(choice, place.path, place.version, place.commit)
        try:
            return self._of_market(choice, self._market(named))
        except (ManifestError, TreeError, FetchError) as error:
            raise _UnusableError(
                f"plugin {choice.id} ({choice.file}): marketplace {named.name}: {error}",
                f'correct it, or switch it off: claude.plugins: {{"{choice.id}": false}}',
            ) from None

    def _of_host(self, choice: Choice, place: Path, version: str, commit: str | None) -> Plugin:
        """The plugin that Claude Code has installed on this machine, as it is."""
        tree = self.trees.of_directory(place.resolve()) if (place / ".git").exists() else place
        return Plugin(choice=choice, state=State.READY, version=version, commit=commit, tree=tree)

    def _of_market(self, choice: Choice, market: Market) -> Plugin:
        assert market.manifest is not None
        assert market.tree is not None
        source = market.manifest.source(choice.name)
        entry = market.manifest.entry(choice.name)
        if isinstance(source, Source):
            own = market.named.own and choice.origin.own
            tree, commit = self._repository(source, own=own, origin=market.named.origin, what=choice.id)
            place, within = tree / source.path, tree
        else:
            place, within, commit = market.tree / source, market.tree, market.commit
        if not place.is_dir() or not place.resolve().is_relative_to(within.resolve()):
            raise ManifestError(f"the directory of {choice.name!r} is not there")
        inside = source if isinstance(source, str) and not market.named.source.remote else None
        if inside is None and place != within and leaves(place):
            place = self.trees.of_directory(place.resolve(), within.resolve())
        version = read_version(place, entry) or (commit or place.name.removeprefix("dir-"))[:_DIGITS]
        return Plugin(
            choice=choice, state=State.READY, version=version, commit=commit, tree=place, inside=inside
        )

    # --- marketplaces -----------------------------------------------------------------------------

    def _known(self, named: Named) -> Market:
        """A marketplace as far as this machine has it already."""
        offline, self.offline = self.offline, True
        try:
            return self._market(named)
        finally:
            self.offline = offline

    def _market(self, named: Named) -> Market:
        """Raises _UnusableError, _NotFetchedError."""
        if named.name in self._failed:
            raise self._failed[named.name]
        if named.name not in self._markets:
            try:
                tree, commit = self._tree(named)
                manifest = read_marketplace(tree, named.source.path)
            except (ManifestError, TreeError, FetchError) as error:
                self._failed[named.name] = self._failure(named, error)
                raise self._failed[named.name] from None
            self._markets[named.name] = Market(named=named, tree=tree, commit=commit, manifest=manifest)
        return self._markets[named.name]

    def _tree(self, named: Named) -> tuple[Path, str | None]:
        copy = named.copy if named.own else None
        if named.source.kind == "directory":
            return self.trees.of_directory(self._directory(named)), None
        if copy is not None and copy.is_dir():  # the user's own clone, which they update themselves
            if not (copy / ".git").exists():
                return self.trees.of_directory(copy.resolve()), None
            with cloned(copy, self.access.environ, self.trees.bounds) as (repository, commit):
                return self.trees.of_commit(repository, commit), commit
        if not named.source.remote:
            kind = named.source.location
            raise ManifestError(f"marketplaces from {kind!r} are not fetched by Moat: {unfetched(kind)}")
        what = f"marketplace {named.name}"
        return self._repository(named.source, own=named.own, origin=named.origin, what=what)

    def _directory(self, named: Named) -> Path:
        """The directory of a marketplace, without links, if whoever named it may have it read."""
        place = Path(named.source.location).resolve()
        if not place.is_dir():
            raise TreeError(f"there is no directory {place}")
        if named.origin is Origin.CONFIG and str(place) != named.source.location:
            raise TreeError(f"{named.source.location} has become a link")  # to what nobody has seen
        if named.origin is Origin.PROJECT and not place.is_relative_to(self.workspace.resolve()):
            raise TreeError(f"{place} lies outside of the workspace, whose settings must not name it")
        if not named.origin.own and (reason := refused_source(place)):
            raise TreeError(reason)
        if not named.own and hidden_from(place, self.workspace):
            raise TreeError(f"{place} is one of your hidden files: name it in ~/.moat/claude/settings.json")
        return place

    def _repository(self, source: Source, *, own: bool, origin: Origin, what: str) -> tuple[Path, str | None]:
        """The files of a repository, from the store or fetched; and the commit."""
        access = replace(self.access, own=own)
        pinned = None if self.refresh else self.lock.commit(source, access)
        if pinned and (tree := self.trees.find(f"git-{pinned}")):
            return tree, pinned
        if self.offline:
            raise _NotFetchedError
        self.before_fetch(origin)
        self.progress(f"fetching {what}")
        wanted = replace(source, commit=pinned) if pinned else source
        attempt = Fetch(what=what, source=str(wanted), host=wanted.host, by=origin)
        try:
            with fetched(wanted, access, self.trees.bounds, self.trees.scratch()) as found:
                attempt = replace(attempt, host=found.host, commit=found.commit)
                tree = self.trees.of_commit(found.repository, found.commit)
        except (FetchError, TreeError) as error:
            attempt = replace(attempt, error=str(error))
            raise
        finally:
            self._fetches.append(attempt)
        way = OWN if own else f"ssh:{found.ssh_host}" if found.ssh_host else PUBLIC
        self.lock.pin(source, way, found.commit)
        return tree, found.commit

    def _failure(self, named: Named, error: Exception) -> _UnusableError:
        title = f"failed to fetch marketplace {named.name} ({named.source}, named in {named.file})"
        if named.name == OFFICIAL:
            title = "Failed to install Anthropic marketplace"
        if not isinstance(error, FetchError):
            title = f"marketplace {named.name} ({named.source}, named in {named.file})"
        hints = []
        if isinstance(error, FetchError):
            hints = _hints(named, self.access)
        off = [c.id for c in self.declared.choices.values() if c.enabled and c.marketplace == named.name]
        if off and named.origin is not Origin.CONFIG:
            hints.append(f'to go without it: claude.plugins: {{"{off[0]}": false}} in agent.yaml')
        return _UnusableError(f"{title}: {error}", "\n".join(hints) or f"correct it in {named.file}")


def _hints(named: Named, access: Access) -> list[str]:
    """What helps when a repository could not be fetched."""
    if named.own:
        url = redacted(named.source.urls[0])
        return [f"`git ls-remote {url}` must work for you without a question"]
    host = named.source.host
    hints = []
    if host not in access.ssh:
        hints.append(f"if it is private: `moat grant ssh --host {host}`, then `--grant ssh:{host}`")
    hints.append("or name it in ~/.moat/claude/settings.json: then it is fetched with your git credentials")
    return hints
