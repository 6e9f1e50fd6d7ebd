"""Trees: directories of programs below `~/.moat/cache`, each made once and then only read.

A tree has the layout of `/usr/local`. An image gets a copy there; an embedded sandbox gets the tree itself
at `/opt/moat/<name>`. Its place is the hash of what it is made of.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from moat.config.dependencies import BY_NAME
from moat.dataclass import dataclass
from moat.paths import private_dir, write_private
from moat.runtime.deps import staging
from moat.runtime.deps.package import Package
from moat.runtime.deps.resolve import Registries, open_registries, resolve
from moat.runtime.deps.selection import Interpreter, Program, Selection
from moat.runtime.deps.unpack import unpack
from moat.runtime.sandbox import Progress

_RECIPE = 3  # raised when the same packages make other trees


@dataclass(frozen=True, slots=True)
class Tree:
    name: str
    path: Path
    python: str | None = None  # the directory in it that must be on Python's path


async def trees(
    selection: Selection,
    cache: Path,
    progress: Progress,
    *,
    interpreter: Interpreter | None = None,
    fresh: bool = False,
) -> list[Tree]:
    """A tree for each program, one for all npm tools, one for each Python tool, one for Python packages.

    Versions must be exact. `interpreter` is needed for what is Python. `fresh` installs tools anew,
    so that what they need is looked up again. Raises StartError.
    """
    async with open_registries(cache) as registries:
        maker = _Maker(registries, cache, progress, fresh=fresh)
        found = {}
        for name in dict.fromkeys(program.entry.name for program in selection.programs):
            parts = [program for program in selection.programs if program.entry.name == name]
            found[name] = await maker.program(name, parts)
        made = list(found.values())
        if selection.node_tools:
            made.append(await maker.node_tools(selection.node_tools, found["node"]))
        if interpreter:
            made += [await maker.python_tool(package, interpreter) for package in selection.python_tools]
            if selection.python_packages:
                made.append(await maker.python_packages(selection.python_packages, interpreter))
        return made


class _Maker:
    def __init__(self, registries: Registries, cache: Path, progress: Progress, *, fresh: bool) -> None:
        self._registries = registries
        self._cache = cache
        self._progress = progress
        self._fresh = fresh

    async def program(self, name: str, parts: Sequence[Program]) -> Tree:
        async def fill(tree: Path) -> None:
            for part in parts:
                file = await self._registries.fetch(part.package, self._progress)
                await asyncio.to_thread(unpack, file, _recipe(part), tree)

        packages = [part.package for part in parts]
        return Tree(name, await self._tree(name, packages, "", fill, fresh=False))

    async def node_tools(self, packages: Sequence[Package], node: Tree) -> Tree:
        async def fill(tree: Path) -> None:
            self._progress(f"installing {', '.join(map(str, packages))}")
            await staging.install_node_tools(packages, node.path, tree, self._cache)

        path = await self._tree("npm-tools", packages, node.path.name, fill, fresh=self._fresh)
        return Tree("npm-tools", path)

    async def python_tool(self, package: Package, interpreter: Interpreter) -> Tree:
        where = f"lib/python-tools/{package.name}"

        async def fill(tree: Path) -> None:
            await self._python([package], tree / where, interpreter)
            staging.adopt_programs(
                tree / where, tree, interpreter=interpreter.path, apart=package.name.partition("[")[0]
            )

        name = package.name.partition("[")[0].lower()
        return Tree(name, await self._tree(name, [package], str(interpreter), fill, fresh=self._fresh))

    async def python_packages(self, packages: Sequence[Package], interpreter: Interpreter) -> Tree:
        async def fill(tree: Path) -> None:
            await self._python(packages, tree / interpreter.packages, interpreter)
            staging.adopt_programs(tree / interpreter.packages, tree, interpreter=interpreter.path)

        path = await self._tree("python-packages", packages, str(interpreter), fill, fresh=self._fresh)
        return Tree("python-packages", path, interpreter.packages)

    async def _python(self, packages: Sequence[Package], site: Path, interpreter: Interpreter) -> None:
        uv = await self._uv()
        self._progress(f"installing {', '.join(map(str, packages))}")
        site.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        await staging.install_python(packages, uv, site, self._cache, version=interpreter.version)

    async def _uv(self) -> Path:
        wanted = Selection(programs=(Program(BY_NAME["uv"], Package("pypi", "uv")),))
        exact = await resolve(wanted, self._cache, fresh=False)
        return (await self.program("uv", exact.programs)).path / "bin/uv"

    async def _tree(
        self,
        name: str,
        packages: Sequence[Package],
        more: str,
        fill: Callable[[Path], Awaitable[None]],
        *,
        fresh: bool,
    ) -> Path:
        """The tree of this content. It is made beside its place and then moved: nobody sees half a one.

        A fresh one does not replace the old one, which a sandbox may be using; a file tells which counts.
        """
        inputs = [_RECIPE, name, sorted(map(repr, packages)), more]
        digest = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]
        place = private_dir(self._cache / "trees")
        current = place / f"{name}-{digest}.current"
        if not fresh and current.exists():
            path = place / current.read_text(encoding="ascii")
            if path.is_dir():
                return path
        path = place / f"{name}-{digest}-{secrets.token_hex(4)}"
        part = path.with_name(f".{path.name}")
        try:
            part.mkdir(mode=0o755)
            part.chmod(0o755)
            await fill(part)
            os.rename(part, path)
        finally:
            await asyncio.to_thread(shutil.rmtree, part, ignore_errors=True)
        write_private(current, path.name.encode())
        return path


def _recipe(part: Program) -> str:
    return "npm" if part.package.name == "npm" else part.entry.name
