"""Tarballs and wheels as files below `bin/`, `lib/`, …: what may be in them, and where it goes."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

_EXECUTABLE, _PLAIN = 0o755, 0o644
_SCRIPT = re.compile(r"[^/]+\.data/scripts/([^/]+)")
_UNUSED_OF_NPM = ("docs/", "man/")

Placement = Callable[[str], str | None]  # path in a package → path in the tree; None: left out
# What a package's programs are called besides their own names: link → target.
_LINKS = {
    "npm": {
        "bin/npm": "../lib/node_modules/npm/bin/npm-cli.js",
        "bin/npx": "../lib/node_modules/npm/bin/npx-cli.js",
    },
    "bun": {"bin/bunx": "bun"},
    "go": {"bin/go": "../lib/go/bin/go", "bin/gofmt": "../lib/go/bin/gofmt"},
}


def unpack(file: Path, name: str, tree: Path) -> None:
    """Put what `file` (of the package that the table calls `name`) holds into `tree`. Blocks."""
    members = _wheel(file) if file.suffix == ".whl" else _tarball(file)
    place = _PLACES.get(name, _scripts)
    for path, mode, data in members:
        target = place(path)
        if target and ".." not in PurePosixPath(target).parts and not target.startswith("/"):
            write(tree / target, data, mode)
    for link, target in _LINKS.get(name, {}).items():
        (tree / link).parent.mkdir(mode=_EXECUTABLE, parents=True, exist_ok=True)
        os.symlink(target, tree / link)


def write(path: Path, data: IO[bytes], mode: int) -> None:
    path.parent.mkdir(mode=_EXECUTABLE, parents=True, exist_ok=True)
    with path.open("wb") as file:
        shutil.copyfileobj(data, file, 1 << 20)
    path.chmod(mode)


def _tarball(file: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    with tarfile.open(file, mode="r:gz") as package:
        for member in package:
            data = package.extractfile(member) if member.isreg() else None  # npm's hold nothing but files
            parts = PurePosixPath(member.name).parts[1:]  # the first one is `package`
            if data and ".." not in parts:
                yield "/".join(parts), _EXECUTABLE if member.mode & 0o100 else _PLAIN, data


def _wheel(file: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    with zipfile.ZipFile(file) as package:
        for member in package.infolist():
            if not member.is_dir() and ".." not in PurePosixPath(member.filename).parts:
                script = _SCRIPT.fullmatch(member.filename)
                mode = _EXECUTABLE if script or (member.external_attr >> 16) & 0o100 else _PLAIN
                with package.open(member) as data:
                    yield member.filename, mode, data


def _scripts(path: str) -> str | None:
    """A wheel's programs."""
    match = _SCRIPT.fullmatch(path)
    return f"bin/{match[1]}" if match else None


def _node(path: str) -> str | None:
    return path if path.startswith(("bin/", "include/")) else None


def _npm(path: str) -> str | None:
    return None if path.startswith(_UNUSED_OF_NPM) else f"lib/node_modules/npm/{path}"


def _go(path: str) -> str | None:
    return f"lib/{path}" if path.startswith("go/") and not path.endswith("__init__.py") else None


def _only(name: str, target: str) -> Placement:
    """One executable; nothing else of the package is needed to run it."""
    return lambda path: target if path == name else None


_PLACES: dict[str, Placement] = {
    "node": _node,
    "npm": _npm,
    "go": _go,
    "claude-code": _only("claude", "bin/claude"),
    "bun": _only("bin/bun", "bin/bun"),
    "deno": _only("deno", "bin/deno"),
}
