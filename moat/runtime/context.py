"""The build context of an image: a tar with the Dockerfile, the host's CAs, hooks and trees of programs."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from moat.paths import private_dir
from moat.runtime.deps.trees import Tree
from moat.runtime.dockerfile import PREFIX


def write_context(
    dockerfile: str, ca: bytes, trees: Sequence[Tree], hooks: Mapping[str, str], directory: Path
) -> IO[bytes]:
    """The context as an unnamed file, positioned at its start. Blocks: some hundred megabytes."""
    file = tempfile.TemporaryFile(dir=private_dir(directory))  # noqa: SIM115 - the caller's to close
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as context:
        _add(context, "Dockerfile", dockerfile.encode())
        _add(context, "ca.pem", ca)
        for name, text in hooks.items():
            _add(context, f"hooks/{name}", text.encode())
        for tree in trees:
            _add_tree(context, tree.path)
    file.seek(0)
    return file


def _add_tree(context: tarfile.TarFile, tree: Path) -> None:
    for directory, names, files in os.walk(tree):
        names.sort()
        links = [name for name in names if os.path.islink(os.path.join(directory, name))]
        for name in sorted([*files, *links]):
            path = Path(directory, name)
            target = f"rootfs/{PREFIX}/{path.relative_to(tree).as_posix()}"
            if path.is_symlink():
                context.addfile(_link(target, os.readlink(path)))
            elif path.is_file():
                with path.open("rb") as data:
                    size = os.fstat(data.fileno()).st_size
                    context.addfile(_info(target, size, executable=bool(path.stat().st_mode & 0o100)), data)


def _info(name: str, size: int, *, executable: bool = False) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)  # time 0 and owner 0: the same content makes the same layer
    info.size, info.mode = size, 0o755 if executable else 0o644
    return info


def _add(context: tarfile.TarFile, name: str, data: bytes) -> None:
    context.addfile(_info(name, len(data)), io.BytesIO(data))


def _link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info
