"""Where Moat keeps things, and with which modes. No other module decides a location or a mode.

Everything lives under `~/.moat` (`MOAT_HOME` moves it as a whole). Directories are 0700, files 0600.
Unix socket paths must fit into 108 bytes, so sockets live in a short runtime directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from moat.dataclass import dataclass
from moat.errors import MoatError


@dataclass(frozen=True, slots=True)
class Home:
    """The state directory of one user. Making one touches no disk."""

    root: Path

    @classmethod
    def from_environment(cls) -> Home:
        moved = os.environ.get("MOAT_HOME")
        return cls(Path(moved).expanduser().absolute() if moved else Path.home() / ".moat")

    @property
    def config_file(self) -> Path:
        return self.root / "config.yaml"

    @property
    def credentials(self) -> Path:
        return self.root / "credentials"

    @property
    def providers(self) -> Path:
        """The user's own providers, a YAML file each."""
        return self.root / "providers"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def journal(self) -> Path:
        return self.root / "journal"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def endpoints(self) -> Path:
        return self.root / "endpoints"

    @property
    def worktrees(self) -> Path:
        """`MOAT_WORKTREE_BASE` moves it: checkouts are large, and may belong on another disk."""
        moved = os.environ.get("MOAT_WORKTREE_BASE")
        return Path(moved).expanduser().absolute() if moved else self.root / "worktrees"

    @property
    def plugin_trees(self) -> Path:
        """What sandboxes are shown of plugins: fetched or copied for them, nothing private."""
        return self.cache / "claude" / "trees"

    def run(self, run_id: str) -> Path:
        return self.runs / run_id


def runtime_dir() -> Path:
    """A short private directory for sockets: `$XDG_RUNTIME_DIR/moat`, or `/tmp/moat-<uid>`.

    Raises MoatError when it cannot be, or somebody else owns the place (they could plant it in /tmp).
    """
    base = os.environ.get("XDG_RUNTIME_DIR")
    if not (base and len(base) <= 40 and os.path.isdir(base)):
        return private_dir(Path("/tmp") / f"moat-{os.getuid()}")  # noqa: S108 - owner and mode are checked
    try:
        return private_dir(Path(base) / "moat")
    except OSError as error:
        hint = "unset XDG_RUNTIME_DIR, or set it to a directory that you can write"
        raise MoatError(f"sockets cannot be kept in {base}/moat: {error.strerror}", hint=hint) from error


def private_dir(path: Path) -> Path:
    """Create `path` (0700) with its parents; refuse one that another user owns or can write."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = os.lstat(path)
    if not stat.S_ISDIR(info.st_mode):
        raise MoatError(f"{path} is not a directory")
    if info.st_uid != os.getuid():
        raise MoatError(f"{path} belongs to another user", hint="set MOAT_HOME or XDG_RUNTIME_DIR")
    if info.st_mode & 0o077:
        os.chmod(path, 0o700)
    return path


def write_private(path: Path, data: bytes) -> None:
    """Replace `path` with `data`, 0600, in a directory that is the user's alone."""
    private_dir(path.parent)
    replace_file(path, data)


def replace_file(path: Path, data: bytes, prepare: Callable[[int], None] = lambda _fd: None) -> None:
    """Replace `path` with `data`. A crash leaves the old file or the new one, never a half.

    `prepare` gets the descriptor of the new file, which is 0600, before it takes the place of the old one.
    """
    fd, temporary = _beside(path)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            prepare(file.fileno())
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def create_file(path: Path, data: bytes) -> None:
    """Make `path` (0600) with `data`: whole or not at all, and never over another one.

    Raises FileExistsError.
    """
    fd, temporary = _beside(path)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _name(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _beside(path: Path) -> tuple[int, str]:
    """A new file (0600) in the directory of `path`. `tempfile` would be 8 ms of imports."""
    name = f"{path.parent}/.{path.name}.{os.urandom(8).hex()}"
    return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), name


def _name(temporary: str, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a stick or a share without hard links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.rename(temporary, path)


def sync_directory(path: Path) -> None:
    """Return when the names of files in `path` would survive a power failure as well."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def owned(lock: Path) -> bool:
    """Whether a living process holds the exclusive lock. Looks only; a shared one is held for an instant."""
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` (created 0600) across processes. Blocks."""
    private_dir(path.parent)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
