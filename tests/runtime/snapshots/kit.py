"""Trees as values, and stores to keep them in."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from moat.paths import Home
from moat.runtime.snapshots.entry import FILE, Entry
from moat.runtime.snapshots.restore import Restored, restore
from moat.runtime.snapshots.store import Kind, Snapshot, Store, open_store
from moat.runtime.snapshots.take import Wish, take

OLD = 1_600_000_000 * 10**9  # nanoseconds: a time that is not now


class Thing(NamedTuple):
    """What somebody who looks at a path can see of it."""

    kind: int
    mode: int
    mtime: int
    content: bytes
    names: int  # paths that are the same file


def look(root: Path) -> dict[bytes, Thing]:
    """Everything below `root`. Directories lose their own times when something beside them is restored."""
    found: dict[bytes, Thing] = {}
    base = os.fsencode(root)
    waiting = [b""]
    while waiting:
        directory = waiting.pop()
        for name in os.listdir(os.path.join(base, directory)):
            path = os.path.join(directory, name)
            full = os.path.join(base, path)
            info = os.lstat(full)
            kind = stat.S_IFMT(info.st_mode)
            content = b""
            if kind == stat.S_IFLNK:
                content = os.readlink(full)
            elif kind == stat.S_IFREG:
                content = Path(os.fsdecode(full)).read_bytes()
            elif kind == stat.S_IFDIR:
                waiting.append(path)
            names = info.st_nlink if kind == stat.S_IFREG else 1
            found[path] = Thing(kind, stat.S_IMODE(info.st_mode), info.st_mtime_ns, content, names)
    return found


def write(root: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def store_for(tmp_path: Path, name: str = "ws") -> tuple[Store, Path]:
    workspace = tmp_path / name
    workspace.mkdir(exist_ok=True)
    return open_store(Home(tmp_path / ".moat"), workspace), workspace


def keep(store: Store, **wish: object) -> Snapshot:
    with store.exclusive():
        snapshot = take(store, Wish(**{"kind": Kind.MANUAL, **wish}))
    assert snapshot is not None
    return snapshot


def bring_back(store: Store, snapshot: Snapshot, *paths: str) -> Restored:
    with store.exclusive():
        return restore(store, snapshot, paths)


def entries(store: Store, snapshot: Snapshot) -> dict[str, Entry]:
    return {entry.path: entry for entry in store.tree(snapshot.tree)}


def check_store(store: Store) -> None:
    """Every snapshot can be read to its last byte, which its names vouch for."""
    store.objects.forget_index()
    for snapshot in store.all():
        for entry in store.tree(snapshot.tree):
            if entry.kind == FILE:
                for _ in store.objects.pieces(entry.data):
                    pass


def age(root: Path) -> None:
    """Make the last walk's memory of `root` believable: as if it had been taken long after."""
    for directory, names, files in os.walk(os.fsencode(root)):
        for name in [*names, *files]:
            os.utime(os.path.join(directory, name), ns=(OLD, OLD), follow_symlinks=False)
