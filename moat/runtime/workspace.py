"""Which directories of the host a sandbox may be given."""

from __future__ import annotations

import os
from pathlib import Path

from moat.errors import UsageError
from moat.paths import Home, runtime_dir
from moat.runtime.sandbox import WORKSPACE, Mount

_KERNEL = frozenset({"proc", "sys"})  # whose files are processes, devices and switches
_SYSTEM = ("/usr/bin", "/usr/lib", "/bin", "/lib", "/dev")  # whose programs Moat itself starts


def check_workspace(path: Path, home: Home) -> Path:
    """The workspace, absolute and without symlinks. Raises UsageError when it may not be shared."""
    place = Path(os.path.realpath(path))
    if not os.path.isdir(place):  # False for names that are too long, too
        raise UsageError(f"workspace {path} is not a directory", hint="`moat run <directory> -- <command>`")
    if place.parts[1:2] and place.parts[1] in _KERNEL:
        raise UsageError(f"workspace {path} is the kernel's", hint="use a project directory")
    if any(place == one or place in one.parents for one in map(Path, _SYSTEM)):
        # None of them could be trusted any more, nor would be found: Moat takes no program from a workspace.
        raise UsageError(f"workspace {path} is the system's", hint="use a project directory")
    _refuse_own_state(place, home, "the workspace")
    return place


def check_mounts(mounts: tuple[Mount, ...], home: Home) -> None:
    """Raises UsageError for a mount that may not be made."""
    for mount in mounts:
        source = Path(os.path.realpath(mount.source))
        if not os.path.exists(source):
            raise UsageError(f"mount {mount.source}: no such file or directory")
        if source != mount.source:  # whoever asks for it has judged this name, and not where it leads now
            raise UsageError(
                f"mount {mount.source}: it is a symbolic link, or lies below one",
                hint=f"name what it leads to: {source}",
            )
        trees = Path(os.path.realpath(home.plugin_trees))
        if not (mount.read_only and trees in source.parents and source.relative_to(trees).parts[0][0] != "."):
            _refuse_own_state(source, home, f"mount {mount.source}")
        target = os.path.normpath(mount.target)
        if not target.startswith("/") or target in {"/", WORKSPACE}:
            raise UsageError(f"mount target {mount.target} is not possible", hint="use e.g. /mnt/data")


def _is_worktree(path: Path, base: Path) -> bool:
    """`<base>/<repository>/<branch>`: the one thing in Moat's directory that is the user's."""
    below = path.relative_to(base).parts if path.is_relative_to(base) else ()
    return len(below) >= 2 and (path / ".git").is_file() and not (path / ".git").is_symlink()


def _refuse_own_state(path: Path, home: Home, what: str) -> None:
    """Credentials, other runs' logs and control sockets must not become files of a sandbox."""
    for own in (home.root, runtime_dir()):
        state = Path(os.path.realpath(own))
        if own is home.root and _is_worktree(path, state / "worktrees"):
            continue
        if path == state or path in state.parents or state in path.parents:
            raise UsageError(
                f"{what} would put Moat's own state ({state}) into the sandbox",
                hint="use a project directory that neither contains it nor lies in it",
            )
