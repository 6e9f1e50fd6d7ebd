"""Volumes: directories that outlive runs, below `~/.moat/volumes/<name of the file>/<volume>`.

A run holds a shared lock on each of its volumes, so that nobody removes one that is in use; the kernel
lets go of it with the process.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moat.dataclass import dataclass
from moat.errors import StartError
from moat.paths import Home, locked, private_dir, write_private
from moat.runtime.git import layout
from moat.runtime.parts import Addition, Part, RunContext
from moat.runtime.sandbox import WORKSPACE, Mount

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_MARK = ".workspace"


@dataclass(frozen=True, slots=True)
class Volume:
    owner: str  # the `name:` of the agent.yaml
    name: str
    path: Path
    in_use: bool  # by a run that lives

    @property
    def title(self) -> str:
        return f"{self.owner}/{self.name}"


class Volumes(Part):
    """The volumes of one run, mounted read-write unless the file says otherwise."""

    name = "volumes"

    def __init__(self) -> None:
        self._locks: list[int] = []

    async def prepare(self, run: RunContext) -> Addition:
        """Makes what is missing. Raises StartError where a target cannot be made in the workspace."""
        mounts = []
        for volume in run.request.volumes:
            path = private_dir(_claimed(run.home, volume.owner, run.request.workspace) / volume.name)
            self._locks.append(_lock(path, fcntl.LOCK_SH))
            if volume.target.startswith(f"{WORKSPACE}/"):
                _make_mount_point(run.request.workspace, volume.target.removeprefix(f"{WORKSPACE}/"))
            mounts.append(Mount.of(path, volume.target, read_only=volume.read_only))
        return Addition(mounts=tuple(mounts))

    async def aclose(self) -> None:
        while self._locks:
            os.close(self._locks.pop())


def _place(home: Home) -> Path:
    return home.root / "volumes"


def _claimed(home: Home, owner: str, workspace: Path) -> Path:
    """The directory of this name's volumes, which belong to the project that was there first.

    A cloned repository may call itself like another project, and must not get that one's volumes.
    """
    if not _NAME.fullmatch(owner):
        raise StartError("volumes are kept under a name", hint="add `name:` to agent.yaml")
    project = _project(workspace)
    place = private_dir(_place(home) / owner)
    mark = place / _MARK
    with locked(place / ".lock"):
        if not mark.exists():
            write_private(mark, f"{project}\n".encode())
    first = Path(mark.read_text(encoding="utf-8").rstrip("\n"))
    if first != project and first.is_dir():
        raise StartError(
            f"the volumes of {owner} belong to {first}",
            hint=f"give this agent.yaml another `name:`, or remove them: moat volumes rm {owner}",
        )
    return place


def _project(workspace: Path) -> Path:
    """The workspace, or the repository that it is a worktree of: worktrees share their volumes.

    An agent can write the worktree's end of the link, so the repository must know the worktree too.
    """
    found = layout.find(workspace)
    if found is None or not found.linked or found.common.name != layout.DOT_GIT:
        return workspace
    return found.common.parent


def _make_mount_point(workspace: Path, inside: str) -> None:
    """A directory of the workspace's owner: the engine would make it as root.

    An agent may have put a link there, so no component is followed.
    """
    owner = workspace.stat()
    directory = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in inside.split("/"):
            made = _make_directory(part, directory)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            deeper = os.open(part, flags, dir_fd=directory)
            os.close(directory)
            directory = deeper
            if made:  # by descriptor: another run may have put a link there since
                os.fchmod(directory, 0o755)  # whatever our umask is
                if os.geteuid() == 0:
                    os.fchown(directory, owner.st_uid, owner.st_gid)
    except OSError as error:
        raise StartError(
            f"a volume cannot be mounted at {WORKSPACE}/{inside}: {error.strerror}",
            hint="its target must be a directory of the workspace, without links on the way",
        ) from None
    finally:
        os.close(directory)


def _make_directory(name: str, above: int) -> bool:
    """False: it is there."""
    try:
        os.mkdir(name, dir_fd=above)
    except FileExistsError:
        return False
    return True


def all_volumes(home: Home) -> list[Volume]:
    """By owner and name."""
    return sorted(_found(home), key=lambda volume: (volume.owner, volume.name))


def _found(home: Home) -> Iterator[Volume]:
    place = _place(home)
    for owner in place.iterdir() if place.is_dir() else ():
        for path in owner.iterdir() if owner.is_dir() else ():
            if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
                yield Volume(owner.name, path.name, path, _in_use(path))


def _in_use(path: Path) -> bool:
    try:
        os.close(_lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB))
    except BlockingIOError:
        return True
    return False


def _lock(path: Path, how: int) -> int:
    """On the directory itself: it can be neither missing nor left over.

    An agent may have taken its owner's rights away; it lies where nobody else can come, and is no link.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags)
    except PermissionError:
        os.chmod(path, stat.S_IRWXU)
        fd = os.open(path, flags)
    try:
        fcntl.flock(fd, how)
    except BaseException:
        os.close(fd)
        raise
    return fd


def size_of(path: Path) -> int:
    """Bytes on disk of everything below `path`; links are not followed."""
    total = 0
    for directory, _, files in os.walk(path):
        for name in files:
            try:
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512
            except OSError:
                continue  # gone meanwhile
    return total


def remove(volume: Volume) -> None:
    """Remove a volume with all that is in it. Raises StartError while a run uses it."""
    try:
        lock = _lock(volume.path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StartError(f"volume {volume.title} is in use", hint="`moat list` shows the runs") from None
    try:
        shutil.rmtree(volume.path, onerror=_force)
    finally:
        os.close(lock)
    _forget_empty(volume.path.parent)


def _forget_empty(place: Path) -> None:
    """A name without volumes belongs to nobody any more."""
    if all(path.name in {_MARK, ".lock"} for path in place.iterdir()):
        shutil.rmtree(place)


def _force(function: Callable[..., Any], path: str, _: object) -> None:
    """An agent may have taken its own rights away: give them back and try once more."""
    for place in (os.path.dirname(path), path):
        if not os.path.islink(place):
            os.chmod(place, stat.S_IRWXU)
    if function in {os.open, os.scandir}:  # a directory that could not be read
        shutil.rmtree(path)
    else:
        function(path)
