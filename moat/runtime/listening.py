"""Programs of this machine that listen on a unix socket where a sandbox could see it: they are covered up.

A socket that has a name in the file system belongs to no network namespace, and a read-only mount keeps
nobody from connecting. So a build server, a process manager or a database of the user's that has its socket
in the workspace would be a way out. What comes to listen there later is not covered.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from moat.runtime.parts import Addition, Part, RunContext
from moat.runtime.sandbox import WORKSPACE, Mount

_TABLE = "/proc/net/unix"
# An empty file beside the record: the short directory may lie on a tmpfs, without idmaps before Linux 6.3.
_COVER = "covered"
_TOLD = 3
_NOBODY = (errno.ECONNREFUSED, errno.ENOENT, errno.ENOTSOCK)


class Listening(Part):
    name = "listening"

    def __init__(self) -> None:
        self._run: RunContext | None = None
        self._covered: tuple[str, ...] = ()

    async def prepare(self, run: RunContext) -> Addition:
        self._run = run
        bound = names()
        trees = (Mount(run.request.workspace, WORKSPACE), *run.request.mounts)
        targets = [f"{tree.target}/{path}" for tree in trees for path in sockets(tree.source, bound)]
        if not targets:
            return Addition()
        self._covered = tuple(dict.fromkeys(targets))
        cover = run.home.run(run.id) / _COVER
        cover.touch(mode=0o444)
        run.journal.record("sockets.covered", places=self._covered)
        return Addition(mounts=tuple(Mount.of(cover, target, read_only=True) for target in self._covered))

    async def started(self) -> None:
        assert self._run is not None
        if self._covered:
            more = f" and {len(self._covered) - _TOLD} more" if len(self._covered) > _TOLD else ""
            places = ", ".join(self._covered[:_TOLD])
            self._run.tell(
                f"a program of this machine listens there, and the run cannot reach it: {places}{more}"
            )


def names() -> frozenset[str]:
    """What the sockets of this network namespace are bound to, as their programs named it."""
    try:
        with open(_TABLE, "rb") as table:
            rows = [line.split(None, 7) for line in table]
    except OSError:
        return frozenset()
    return frozenset(os.fsdecode(row[7].rstrip(b"\n")) for row in rows[1:] if len(row) == 8)


def sockets(tree: Path, bound: frozenset[str]) -> Iterator[str]:
    """Those of `bound` that lie in `tree` and can be reached there, relative to it.

    A relative name is tried from `tree`: a project's programs are mostly started at its top.
    """
    root = os.path.realpath(tree)
    directories: dict[str, str] = {}
    for name in bound:
        above, last = os.path.split(os.path.join(root, name))
        if above not in directories:
            directories[above] = os.path.realpath(above)
        directory = directories[above]
        if not f"{directory}/".startswith(f"{root}/") or not _open_to_agent(root, directory):
            continue
        if _is_served(directory, last):
            yield os.path.relpath(os.path.join(directory, last), root)


def _is_served(directory: str, name: str) -> bool:
    """Whether somebody is behind the socket: one that a program has left belongs to whoever comes next.

    By the directory's descriptor: a path can be longer than what a socket's address takes. As for datagrams:
    those need no answer, and a server of connections is only found to be of another type, and hears nothing.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(os.path.join(directory, name)).st_mode):
            return False
        above = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            return client.connect_ex(f"/proc/self/fd/{above}/{name}") not in _NOBODY
    except OSError:
        return True
    finally:
        os.close(above)


def _open_to_agent(root: str, directory: str) -> bool:
    """Whether root's agent, the owner of `root`, can come there: elsewhere nothing can be mounted for it."""
    if os.geteuid() != 0:
        return True  # the agent has our uid, and we were there
    owner = os.stat(root)
    while len(directory) >= len(root):
        try:
            found = os.stat(directory)
        except OSError:
            return False
        bit = 0o100 if found.st_uid == owner.st_uid else 0o010 if found.st_gid == owner.st_gid else 0o001
        if not found.st_mode & bit:
            return False
        directory = os.path.dirname(directory)
    return True
