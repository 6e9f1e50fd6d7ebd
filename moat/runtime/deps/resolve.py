"""Exact versions for what is wanted, and the registries that know them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

from moat.config.dependencies import BY_NAME
from moat.errors import StartError
from moat.runtime.deps.package import Memory, Package
from moat.runtime.deps.selection import Program, Selection
from moat.runtime.sandbox import Progress

_MACHINES = {"x86_64": "x64", "aarch64": "arm64"}


class Registry(Protocol):
    async def find(self, package: Package) -> str: ...

    async def fetch(self, package: Package, progress: Progress) -> Path: ...


class Registries:
    """Both registries, each opened when it is asked for the first time. Made by `open_registries`."""

    def __init__(self, cache: Path, stack: AsyncExitStack) -> None:
        self._cache = cache
        self._stack = stack
        self._open: dict[str, Registry] = {}

    async def get(self, name: str) -> Registry:
        if name not in self._open:
            from moat.runtime.deps import npm, pypi
            from moat.runtime.deps.fetching import open_fetcher

            place = npm.place_of_host() if name == "npm" else pypi.place_of_host()
            fetcher = await self._stack.enter_async_context(open_fetcher(place))
            cache = self._cache / name
            self._open[name] = npm.Npm(fetcher, cache) if name == "npm" else pypi.PyPI(fetcher, cache)
        return self._open[name]

    async def fetch(self, package: Package, progress: Progress) -> Path:
        return await (await self.get(package.registry)).fetch(package, progress)


@asynccontextmanager
async def open_registries(cache: Path) -> AsyncIterator[Registries]:
    async with AsyncExitStack() as stack:
        yield Registries(cache, stack)


def machine() -> str:
    """The machine as the npm registry calls it. Raises StartError where there are no packages for it.

    An engine shares this machine's kernel: `DockerRuntime.probe` sees to it.
    """
    name = os.uname().machine
    if name not in _MACHINES:
        raise StartError(f"there are no packages for {name}", hint="x86_64 and aarch64 are supported")
    return _MACHINES[name]


async def resolve(selection: Selection, cache: Path, *, fresh: bool) -> Selection:
    """The selection with exact versions: as remembered, or as looked up now when `fresh`."""
    async with open_registries(cache) as registries:
        lookup = _Lookup(registries, Memory(cache / "versions.json"), fresh=fresh)
        programs = [
            dataclasses.replace(program, package=await lookup(program.package))
            for program in selection.programs
        ]
        for program in list(programs):
            if program.entry.name == "node":  # the registry's `node` comes without npm
                wanted = Package("npm", "npm", npm_for(program.package.version))
                programs.append(Program(BY_NAME["node"], await lookup(wanted)))
        return dataclasses.replace(
            selection,
            programs=tuple(programs),
            node_tools=tuple([await lookup(package) for package in selection.node_tools]),
            python_tools=tuple([await lookup(package) for package in selection.python_tools]),
            python_packages=tuple([await lookup(package) for package in selection.python_packages]),
        )


class _Lookup:
    def __init__(self, registries: Registries, memory: Memory, *, fresh: bool) -> None:
        self._registries = registries
        self._memory = memory
        self._fresh = fresh

    async def __call__(self, package: Package) -> Package:
        if package.exact:
            return package
        known = self._memory.recall(package)
        if known and not self._fresh:
            return dataclasses.replace(package, version=known)
        version = await (await self._registries.get(package.registry)).find(package)
        self._memory.keep(package, version)
        return dataclasses.replace(package, version=version)


def npm_for(node: str) -> str:
    """The npm that goes with a node release."""
    return "10" if int(node.split(".", 1)[0]) < 24 else "11"
