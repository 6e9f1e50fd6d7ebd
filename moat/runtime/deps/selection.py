"""What `dependencies:` asks for, read and expanded: pure, nothing is looked up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from moat.config.dependencies import BY_NAME, Dependency, Entry, Kind, parse
from moat.dataclass import dataclass
from moat.errors import StartError, UsageError
from moat.runtime.deps.package import Package

DEBIAN_PYTHON = "3.11"  # of the default base image


@dataclass(frozen=True, slots=True)
class Interpreter:
    """The Python that packages are for."""

    path: str  # where it is in the sandbox
    version: str  # `3.11`
    packages: str  # directory below a tree that is on its path: `lib/python3.11/dist-packages`


@dataclass(frozen=True, slots=True)
class Program:
    """A row of the table whose files come out of one package."""

    entry: Entry
    package: Package


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    programs: tuple[Program, ...] = ()
    node_tools: tuple[Package, ...] = ()  # installed by npm, together
    python_tools: tuple[Package, ...] = ()  # each apart from all others
    python_packages: tuple[Package, ...] = ()  # importable by `python`
    debian: tuple[Entry, ...] = ()
    python: str | None = None  # version as written; "": Debian's; None: not asked for
    services: tuple[tuple[str, str], ...] = ()  # (name, version)

    @property
    def packages(self) -> tuple[Package, ...]:
        """All that come from a registry."""
        programs = tuple(program.package for program in self.programs)
        return (*programs, *self.node_tools, *self.python_tools, *self.python_packages)

    @property
    def words(self) -> tuple[str, ...]:
        """For a person: what there is besides Debian's own."""
        return tuple(str(package) for package in self.packages)


def select(dependencies: Iterable[str], *, machine: str) -> Selection:
    """`machine`: as the npm registry calls it (`x64`). Raises StartError for what cannot be meant."""
    try:
        wanted = _unique(_expanded([parse(text) for text in dependencies]))
    except UsageError as error:
        raise StartError(f"dependencies: {error}", hint=error.hint) from None
    rows = [(BY_NAME[d.name], d.version or BY_NAME[d.name].version) for d in wanted if not d.source]
    python = next((d.version for d in wanted if not d.source and d.name == "python"), None)
    return Selection(
        programs=tuple(
            Program(entry, _package(entry, version, machine))
            for entry, version in rows
            if entry.kind in {Kind.NPM, Kind.WHEEL}
        ),
        node_tools=(
            *_rows(rows, Kind.NODE_TOOL, machine),
            *(Package("npm", d.name, d.version) for d in wanted if d.source == "npm"),
        ),
        python_tools=(
            *_rows(rows, Kind.PYTHON_TOOL, machine),
            *(Package("pypi", d.name, d.version) for d in wanted if d.source == "uv"),
        ),
        python_packages=tuple(Package("pypi", d.name, d.version) for d in wanted if d.source == "pip"),
        debian=tuple(entry for entry, _ in rows if entry.kind is Kind.DEBIAN),
        python=python,
        services=tuple((entry.name, version) for entry, version in rows if entry.kind is Kind.SERVICE),
    )


def _expanded(wanted: Sequence[Dependency]) -> Iterable[Dependency]:
    """Bundles as what they hold, and what others require; a version that was written counts for all."""
    for item in wanted:
        entry = BY_NAME[item.name] if not item.source else None
        if entry and entry.kind is Kind.BUNDLE:
            yield from _expanded([parse(name) for name in entry.holds])
        else:
            yield item
        required = entry.requires if entry else {"npm": ("node",), "pip": ("python",)}.get(item.source, ())
        yield from (Dependency("", name, "") for name in required)


def _unique(wanted: Iterable[Dependency]) -> list[Dependency]:
    found: dict[tuple[str, str], Dependency] = {}
    for item in wanted:
        key = (item.source, item.name)
        known = found.setdefault(key, item)
        if item.version and known.version and item.version != known.version:
            raise UsageError(f"{item.name} is asked for in two versions")
        if item.version:
            found[key] = item
    return list(found.values())


def _rows(rows: Iterable[tuple[Entry, str]], kind: Kind, machine: str) -> list[Package]:
    return [_package(entry, version, machine) for entry, version in rows if entry.kind is kind]


def _package(entry: Entry, version: str, machine: str) -> Package:
    registry: Literal["npm", "pypi"] = "npm" if entry.kind in {Kind.NPM, Kind.NODE_TOOL} else "pypi"
    name = entry.package or entry.name
    if entry.name == "node":
        name = "node-linux-{arch}"
    return Package(registry, name.replace("{arch}", machine), version)
