"""`src:dst[:ro|rw]`: what may be mounted into a sandbox, and where.

A workspace file can come from a cloned repository. So a source that holds credentials or an engine's
socket is refused (it would carry out what the sandbox exists to keep in), and so is a target that
would replace what Moat itself puts there.
"""

from __future__ import annotations

import posixpath
from pathlib import Path

from moat.config.model import MountConfig
from moat.errors import UsageError
from moat.paths import Home

_SYSTEM = (
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/etc",
    "/boot",
    "/bin",
    "/sbin",
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
)
_OCCUPIED = ("/", "/tmp", "/var", "/home", "/home/agent", "/workspace")  # noqa: S108 - names in the sandbox
_CLAUDE = ("/home/agent/.claude", "/home/agent/.claude.json")
_ENGINE_SOCKETS = ("/var/run", "/run")
_SECRETS = (
    ".ssh",
    ".gnupg",
    ".aws",
    ".azure",
    ".kube",
    ".docker",
    ".netrc",
    ".git-credentials",
    ".npmrc",
    ".pypirc",
    ".config/gh",
    ".config/gcloud",
    ".claude/.credentials.json",
    ".codex/auth.json",
    ".local/share/keyrings",
)


def parse_mount(text: str, workspace: Path) -> MountConfig:
    """Read `src:dst[:ro|rw]`; a relative `src` is below `workspace`, `~` is the user's home.

    The source is what it is now, without links: what is judged is what will be mounted.

    Raises UsageError with the reason, for the caller to put a place before it.
    """
    parts = text.split(":")
    if len(parts) not in {2, 3} or not all(parts):
        raise UsageError(f"{text!r} is not src:dst[:ro|rw]")
    if len(parts) == 3 and parts[2] not in {"ro", "rw"}:
        raise UsageError(f"{text!r} ends in {parts[2]!r}; the mode is ro or rw")
    source = Path(parts[0]).expanduser()
    source = Path(posixpath.normpath(source if source.is_absolute() else workspace / source))
    target = parts[1]
    if reason := refused_target(target):
        raise UsageError(reason)
    if not source.exists():
        raise UsageError(f"{parts[0]} does not exist")
    source = source.resolve()
    if reason := refused_source(source):
        raise UsageError(reason)
    return MountConfig(source, posixpath.normpath(target), read_only=parts[2:] == ["ro"])


def refused_target(target: str) -> str | None:
    """Why nothing may be mounted at `target`, or None."""
    if not target.startswith("/"):
        return f"the target {target!r} must be an absolute path in the sandbox"
    if ".." in target.split("/") or target.startswith("//") or not target.isprintable():
        return f"the target {target!r} must be a plain path"
    path = posixpath.normpath(target)
    if path in _OCCUPIED or path in _CLAUDE:
        return f"the target {path} is Moat's own"
    if any(_within(path, tree) for tree in _SYSTEM):
        return f"the target {path} belongs to the system; choose one such as /data or /opt/…"
    return None


def refused_source(source: Path) -> str | None:
    """Why `source` may not be shown to a sandbox, or None. Follows symbolic links."""
    real = str(source.resolve())
    if any(_within(real, tree) for tree in ("/proc", "/sys", "/dev", *_ENGINE_SOCKETS)):
        return f"{source} is part of the host's system, not of a project"
    state = str(Home.from_environment().root.resolve())
    if _within(real, state) or _within(state, real):
        return f"{source} holds Moat's own state"
    for name in _SECRETS:
        secret = Path.home() / name
        if secret.exists():
            held = str(secret.resolve())
            if _within(real, held) or _within(held, real):
                return f"{source} holds credentials (~/{name}); a sandbox must not see them"
    return None


def refused_to_workspace(mount: MountConfig, workspace: Path) -> str | None:
    """Why a file of the workspace may not ask for this mount, or None. What the user asks for is the user's.

    Outside of the workspace are files that this machine obeys (`~/.bashrc`, another project's hooks): they
    are shown for reading alone, and hidden ones of the home directory, with logins and cookies, not at all.
    """
    source, place = str(mount.source.resolve()), str(workspace.resolve())
    if _within(source, place):
        return None
    flag = f"--mount {mount.source}:{mount.target}{':ro' if mount.read_only else ''}"
    if not mount.read_only:
        return f"{mount.source} lies outside of the workspace: only `:ro` may be asked for here, else {flag}"
    if hidden_from(mount.source, workspace):
        return f"{mount.source} is one of your hidden files: it can be mounted with {flag}, and not from here"
    return None


def hidden_from(source: Path, workspace: Path) -> bool:
    """Whether `source` is in a hidden entry of the home directory, and `workspace` is not in the same."""
    real, home = str(source.resolve()), Path.home().resolve()
    hidden = Path(real).relative_to(home).parts[:1] if _within(real, str(home)) else ()
    if not hidden or not hidden[0].startswith("."):
        return False
    return not _within(str(workspace.resolve()), str(home / hidden[0]))


def _within(path: str, tree: str) -> bool:
    return path == tree or path.startswith(tree.rstrip("/") + "/")
