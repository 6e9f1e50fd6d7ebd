"""The build context of an image: a tar with the Dockerfile, the host's CAs and what npm packages hold."""

from __future__ import annotations

import io
import platform
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from moat.errors import StartError
from moat.paths import private_dir
from moat.runtime.dockerfile import NpmPackage, Plan
from moat.runtime.packages import Registry
from moat.runtime.sandbox import Progress

_ARCHITECTURES = {"x86_64": "x64", "aarch64": "arm64"}
_NPM_HOME = "usr/local/lib/node_modules/npm/"
_LINKS = {
    "usr/local/bin/npm": "../lib/node_modules/npm/bin/npm-cli.js",
    "usr/local/bin/npx": "../lib/node_modules/npm/bin/npx-cli.js",
}

Placement = Callable[[str], str | None]  # path in a package → path in the image; None: left out


@dataclass(frozen=True, slots=True)
class Layer:
    """A fetched package and where its files go."""

    tarball: Path
    place: Placement


async def fetch_layers(plan: Plan, registry: Registry, progress: Progress) -> tuple[Layer, ...]:
    """Fetch what the plan wants from npm. Versions must be resolved."""
    machine = platform.machine()  # the engine shares this machine's kernel: `DockerRuntime.probe` sees to it
    if machine not in _ARCHITECTURES:
        raise StartError(f"node and claude-code have no packages for {machine}")
    architecture = _ARCHITECTURES[machine]
    layers = []
    if plan.node:
        node = NpmPackage(f"node-linux-{architecture}", plan.node.version)
        npm = await registry.resolve(NpmPackage("npm", npm_for(plan.node.version)))
        layers.append(Layer(await registry.fetch(node, progress), _place_node))
        layers.append(Layer(await registry.fetch(npm, progress), _place_npm))
    if plan.claude:
        claude = NpmPackage(f"{plan.claude.name}-linux-{architecture}", plan.claude.version)
        layers.append(Layer(await registry.fetch(claude, progress), _place_claude))
    return tuple(layers)


def npm_for(node: str) -> str:
    """The npm that goes with a node release; the npm registry's `node` comes without one."""
    return "10" if int(node.split(".", 1)[0]) < 24 else "11"


def _place_node(path: str) -> str | None:
    return f"usr/local/{path}" if path.startswith(("bin/", "include/")) else None


def _place_npm(path: str) -> str | None:
    return None if path.startswith(("docs/", "man/")) else _NPM_HOME + path


def _place_claude(path: str) -> str | None:
    """One executable; nothing of node is needed to run it."""
    return "usr/local/bin/claude" if path == "claude" else None


def write_context(dockerfile: str, ca: bytes, layers: tuple[Layer, ...], directory: Path) -> IO[bytes]:
    """The context as an unnamed file, positioned at its start. Blocks: some hundred megabytes."""
    file = tempfile.TemporaryFile(dir=private_dir(directory))  # noqa: SIM115 - the caller's to close
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as context:
        _add(context, "Dockerfile", dockerfile.encode())
        _add(context, "ca.pem", ca)
        for layer in layers:
            for info, data in _files(layer):
                context.addfile(info, data)
            if layer.place is _place_npm:
                for name, target in _LINKS.items():
                    context.addfile(_link(name, target))
    file.seek(0)
    return file


def _files(layer: Layer) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    with tarfile.open(layer.tarball, mode="r:gz") as package:
        for member in package:
            path = PurePosixPath(member.name)
            if not member.isreg() or ".." in path.parts:
                continue  # packages of npm hold nothing but files
            place = layer.place("/".join(path.parts[1:]))  # the first part is `package`
            data = package.extractfile(member)
            if place and data:
                yield _info(f"rootfs/{place}", member.size, 0o755 if member.mode & 0o100 else 0o644), data


def _info(name: str, size: int, mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)  # time 0 and owner 0: the same content makes the same layer
    info.size, info.mode = size, mode
    return info


def _add(context: tarfile.TarFile, name: str, data: bytes) -> None:
    context.addfile(_info(name, len(data)), io.BytesIO(data))


def _link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(f"rootfs/{name}")
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info
