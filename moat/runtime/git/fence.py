"""What of a repository's git directories a sandbox may write.

An ordinary workspace has its `.git` inside. The sandbox must write there (HEAD, index, objects, refs, a lock
beside each), so the directory is writable; but it cannot be replaced, because it is a mount point, and
these are read-only mounts in it:

    config, config.worktree, hooks    what git runs
    commondir                         would say that config and hooks are elsewhere; there is none, so one is
                                      put there that says "here", which means the same to git
    worktrees                         others' HEAD and index; `git gc` inside would take them for deleted

A worktree has its own part of the repository (HEAD, index) apart from the common one, which is shown at its
path on the host, because git's pointers name that. There everything is read-only but objects and refs, and of
the logs there is a copy (`reflogs`): no lock can be made beside `config` or `packed-refs`,
so a run cannot delete branches. With a copy of `packed-refs` it could, and would lose sight of every branch
that git on the host packs meanwhile (a `git fetch` may): its next commit there would have no parent.

A mount on a single file ends when somebody on the host replaces that file (`git config`); a read-only
directory does not have that gap. A lock of ours beside `config` would close it, and would keep the user's
`git push -u` from working for as long as a run lasts.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterable
from pathlib import Path

from moat.errors import StartError
from moat.runtime.git.command import configured
from moat.runtime.git.layout import DOT_GIT, Repository
from moat.runtime.sandbox import WORKSPACE, Mount

HERE = b".\n"  # the content of our `commondir`
READ_ONLY = ("config", "config.worktree", "hooks", "commondir", "worktrees")
_SHARED = ("objects", "refs", "lfs", "rr-cache")  # directories of the common part, for every worktree
_POINTERS = ("commondir", "gitdir", "config.worktree")
_SYSTEM = ("/usr", "/etc", "/proc", "/sys", "/dev", "/run/moat", "/bin", "/sbin", "/lib", "/lib64", WORKSPACE)


def mounts(repository: Repository, *, writable: bool) -> tuple[Mount, ...]:
    """The mounts that show `repository` to a sandbox. `writable`: its configuration and hooks as well.

    Raises StartError when it lies where a sandbox has something else.
    """
    if not repository.linked:
        return () if writable else _inside(repository.own)
    found = [
        Mount(repository.tree, str(repository.tree)),  # `git worktree prune` inside looks for it there
        *(Mount(repository.tree / DOT_GIT, path, read_only=True) for path in _both(repository.tree)),
        Mount(repository.common, str(repository.common), read_only=not writable),
        *_at_home(repository.common, _SHARED, read_only=False),
        *_at_home(repository.common, ("worktrees",), read_only=True),
        Mount(repository.own, str(repository.own)),
        *_at_home(repository.own, _POINTERS, read_only=True),
    ]
    for mount in found:
        if (
            mount.target.startswith(tuple(f"{path}/" for path in _SYSTEM))
            and mount.target != f"{WORKSPACE}/.git"
        ):
            raise StartError(
                f"this worktree's repository is in {repository.common}, where a sandbox has files of its own",
                hint="move it, e.g. to your home directory",
            )
    return tuple(found)


def shown_again(repository: Repository, others: Iterable[Mount]) -> tuple[Mount, ...]:
    """The same guards wherever other writable mounts of a run show the repository once more.

    Raises StartError for a mount that is nothing but what is guarded.
    """
    found: list[Mount] = []
    for mount in others:
        if mount.read_only:
            continue
        source = Path(os.path.realpath(mount.source))
        for path, read_only in _guarded(repository):
            if read_only and source.is_relative_to(path):
                raise _guarded_error(source, mount)
            if path != source and path.is_relative_to(source):
                found.append(Mount(path, f"{mount.target}/{path.relative_to(source)}", read_only))
    return tuple(found)


def _guarded(repository: Repository) -> list[tuple[Path, bool]]:
    """What is a mount point, and whether it can only be read; outer ones first."""
    own, common = repository.own, repository.common
    places = [(common, False), *((common / name, True) for name in READ_ONLY)]
    if repository.linked:
        places = [(repository.tree / DOT_GIT, True), *places]
        places += [(own / name, True) for name in _POINTERS]
    return [(path, read_only) for path, read_only in places if _plain(path)]


def _guarded_error(source: Path, mount: Mount) -> StartError:
    return StartError(
        f"{source} may not be written by a run, and is to be mounted at {mount.target} for that",
        hint="mount it with `:ro`, or let the run write what git obeys with --writable-git",
    )


def complete(repository: Repository) -> None:
    """Make what is missing and what a sandbox could otherwise make. Leaves nothing that git notices.

    Raises StartError where something cannot be kept from a sandbox.
    """
    owner = os.stat(repository.common)
    if not repository.linked:
        _refuse_links(repository.own)
        _make(repository.own / "config", b"", owner)
        if not (repository.own / "hooks").exists():
            _make_directory(repository.own / "hooks", owner)
    extended = configured(repository.common / "config", "--type=bool", "extensions.worktreeConfig")
    if extended and extended.strip() == "true":
        _make(repository.own / "config.worktree", b"", owner)


def place_commondir(own: Path) -> None:
    _make(own / "commondir", HERE, os.stat(own))


def remove_commondir(own: Path) -> None:
    """Ours only; whatever else is there is somebody's."""
    path = own / "commondir"
    try:
        if stat.S_ISREG(os.lstat(path).st_mode) and path.read_bytes() == HERE:
            path.unlink()
    except OSError:
        return


def _refuse_links(own: Path) -> None:
    """A mount on a link covers what it leads to, and not the link, which the sandbox could then replace."""
    for name in READ_ONLY:
        if (own / name).is_symlink():
            hint = "make it a plain file or directory, or let the run write it with --writable-git"
            if name == "hooks":
                target = shlex.quote(os.path.realpath(own / name))
                hint = f"git config core.hooksPath {target} && rm {shlex.quote(str(own / name))}\n{hint}"
            raise StartError(f"{own / name} is a symbolic link, which a sandbox could replace", hint=hint)


def _inside(own: Path) -> tuple[Mount, ...]:
    target = f"{WORKSPACE}/{DOT_GIT}"
    guarded = [name for name in READ_ONLY if _plain(own / name)]
    return (
        Mount(own, target),
        *(Mount(own / name, f"{target}/{name}", read_only=True) for name in guarded),
    )


def _both(tree: Path) -> tuple[str, str]:
    return f"{WORKSPACE}/{DOT_GIT}", str(tree / DOT_GIT)


def _at_home(directory: Path, names: tuple[str, ...], *, read_only: bool) -> list[Mount]:
    """Entries of `directory` that exist, at their own paths."""
    present = [directory / name for name in names if _plain(directory / name)]
    return [Mount(path, str(path), read_only) for path in present]


def _plain(path: Path) -> bool:
    """A file or a directory; nothing is mounted on a link."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def _make(path: Path, content: bytes, owner: os.stat_result) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        _own(file.fileno(), owner)


def _make_directory(path: Path, owner: os.stat_result) -> None:
    os.mkdir(path, 0o755)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _own(fd, owner)
    finally:
        os.close(fd)


def _own(fd: int, owner: os.stat_result) -> None:
    if os.geteuid() == 0:  # Moat run by root on somebody's repository
        os.fchown(fd, owner.st_uid, owner.st_gid)
