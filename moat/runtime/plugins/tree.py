"""Writing one tree: regular files, directories and harmless links, out of git objects or of a directory.

Links are the attack here: followed by this machine, one that leads out of the tree would hand over a
foreign file. A link is kept only when its text cannot lead out, whatever other links are on its way.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path

from moat.dataclass import dataclass
from moat.runtime.plugins.git import Bounds, FetchError, Repository

_LINK_BYTES = 4096
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class TreeError(Exception):
    """Why a directory is not taken."""


def leaves(tree: Path) -> bool:
    """Whether a link in `tree` leads out of it."""
    for directory, names, files in os.walk(tree):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            if os.path.islink(path):
                inside = posixpath.relpath(path, tree)
                if escapes(inside, os.readlink(path)):
                    return True
    return False


@dataclass(slots=True)
class TreeWriter:
    """Writes one tree and keeps count; nothing is written outside `root`."""

    root: Path
    bounds: Bounds
    _total: int = 0
    _entries: dict[str, bytes] = field(default_factory=dict)
    _within: Path = Path()

    def digest(self) -> str:
        """Of names, modes and contents."""
        found = hashlib.sha256()
        for path, mark in sorted(self._entries.items()):
            found.update(os.fsencode(path) + b"\0" + mark + b"\0")
        return found.hexdigest()

    # --- from git ---------------------------------------------------------------------------------

    def commit(self, repository: Repository, commit: str) -> None:
        listed = repository.git("ls-tree", "-r", "-z", "-l", "--full-tree", commit)
        entries = [_entry(line) for line in listed.split(b"\0") if line]
        kept = [entry for entry in entries if entry.mode in {"100644", "100755", "100664", "120000"}]
        for entry in kept:
            _check_path(entry.path)
            self._count(entry.path, entry.size)
        _check_no_path_through_a_link(kept)
        contents = _contents(repository, [entry.name for entry in kept])
        for entry, data in zip(kept, contents, strict=True):
            if entry.mode == "120000":
                self._link(entry.path, os.fsdecode(data))
            else:
                self._file(entry.path, data, executable=entry.mode == "100755")

    # --- from a directory -------------------------------------------------------------------------

    def directory(self, source: Path, within: Path) -> None:
        """`source` must be below `within`, whose links are judged by where they really lead.

        Neither has links in it: what has become one since it was judged leads out of `within`.
        """
        self._within = within
        self._copy(source, "", ())

    def _copy(self, source: Path, inside: str, above: tuple[str, ...]) -> None:
        try:
            handle, real = self._opened(source.resolve(), inside or str(source), os.O_DIRECTORY)
            if real in above or len(above) > 64:
                os.close(handle)
                raise TreeError(f"{inside or source} is nested in itself, or very deep")
        except OSError as error:
            raise TreeError(f"{inside or source}: {error.strerror}") from None
        try:
            for name in sorted(os.listdir(handle)):
                if name != ".git":
                    self._copy_entry(handle, name, posixpath.join(inside, name), (*above, real))
        finally:
            os.close(handle)

    def _copy_entry(self, handle: int, name: str, path: str, above: tuple[str, ...]) -> None:
        place = Path(above[-1]) / name
        try:
            info = os.stat(name, dir_fd=handle, follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                self._copy(place, path, above)
            elif stat.S_ISREG(info.st_mode):
                self._copy_file(os.open(name, _READ, dir_fd=handle), path)
            elif stat.S_ISLNK(info.st_mode):
                self._copy_link(place, os.readlink(name, dir_fd=handle), path, above)
        except OSError as error:
            raise TreeError(f"{path}: {error.strerror}") from None

    def _opened(self, place: Path, path: str, more: int = 0) -> tuple[int, str]:
        """`place` for reading, and where it really is: somebody may exchange what leads there meanwhile."""
        handle = os.open(place, _READ | more)
        real = os.readlink(f"/proc/self/fd/{handle}")
        inside = Path(real)
        if not inside.is_relative_to(self._within) or ".git" in inside.relative_to(self._within).parts:
            os.close(handle)
            raise TreeError(f"{path} leads out of the directory")
        return handle, real

    def _copy_file(self, handle: int, path: str) -> None:
        with os.fdopen(handle, "rb") as file:
            info = os.fstat(handle)
            if not stat.S_ISREG(info.st_mode):
                raise TreeError(f"{path} is not a regular file")
            self._count(path, info.st_size)
            data = file.read(info.st_size + 1)
        if len(data) > info.st_size:
            raise TreeError(f"{path} grows while it is read")
        self._file(path, data, executable=bool(info.st_mode & 0o100))

    def _copy_link(self, link: Path, text: str, path: str, above: tuple[str, ...]) -> None:
        if not escapes(path, text):
            self._count(path, len(text))
            self._link(path, text)
        elif (target := link.resolve()).is_dir():
            self._copy(target, path, above)
        else:
            self._copy_file(self._opened(target, f"the link {path}")[0], path)

    # --- writing ----------------------------------------------------------------------------------

    def _count(self, path: str, size: int) -> None:
        self._total += size
        if size > self.bounds.file:
            raise TreeError(f"{path} is larger than {self.bounds.file >> 20} MiB")
        if self._total > self.bounds.total:
            raise TreeError(f"more than {self.bounds.total >> 20} MiB of files")
        if len(self._entries) >= self.bounds.files:
            raise TreeError(f"more than {self.bounds.files} files")
        self._entries[path] = b""

    def _file(self, path: str, data: bytes, *, executable: bool) -> None:
        mode = 0o755 if executable else 0o644
        handle = os.open(self._place(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            os.fchmod(handle, mode)  # whatever the umask says: hook scripts must stay executable
        self._entries[path] = b"%o " % mode + hashlib.sha256(data).digest()

    def _link(self, path: str, text: str) -> None:
        if len(text) > _LINK_BYTES or escapes(path, text):
            raise TreeError(f"the link {path} leads out of the directory")
        os.symlink(text, self._place(path))
        self._entries[path] = b"link " + os.fsencode(text)

    def _place(self, path: str) -> Path:
        place = self.root / path
        place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        return place


def escapes(path: str, text: str) -> bool:
    """Whether a link at `path` with `text` could lead out of its tree.

    `..` is taken only in front: behind a name it would start from wherever that name leads.
    """
    parts = text.split("/")
    ups = next((n for n, part in enumerate(parts) if part != ".."), len(parts))
    if not text or text.startswith("/") or "\0" in text or ".." in parts[ups:]:
        return True
    return ups > path.count("/")


# --- objects of git -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Entry:
    mode: str
    name: str  # of the object
    size: int
    path: str


def _entry(line: bytes) -> _Entry:
    head, _, path = line.partition(b"\t")
    mode, _, name, size = head.decode("ascii").split()
    return _Entry(mode, name, 0 if size == "-" else int(size), os.fsdecode(path))


def _check_path(path: str) -> None:
    """Git refuses such names itself when it checks out; nothing is checked out here."""
    for part in path.split("/"):
        if part in {"", ".", ".."} or part.lower() == ".git" or len(os.fsencode(part)) > 255:
            raise TreeError(f"the repository holds a file with the name {path[:200]!r}")
    if len(os.fsencode(path)) > 2000:
        raise TreeError("the repository holds a very long path")


def _check_no_path_through_a_link(entries: list[_Entry]) -> None:
    """A crafted tree can hold a link `a` and a file `a/b`: written in turn, `b` would land outside."""
    seen = {entry.path for entry in entries}
    for entry in entries:
        parts = entry.path.split("/")
        if any("/".join(parts[:n]) in seen for n in range(1, len(parts))):
            raise TreeError(f"the repository holds {entry.path[:200]!r} below a file of that name")


def _contents(repository: Repository, names: list[str]) -> Iterator[bytes]:
    """The contents of blobs, in order."""
    answer = memoryview(repository.git("cat-file", "--batch", data="".join(f"{n}\n" for n in names).encode()))
    at = 0
    for name in names:
        end = at
        while answer[end] != 0x0A:
            end += 1
        kind = bytes(answer[at:end]).split()
        if len(kind) != 3 or kind[1] != b"blob":
            raise FetchError(f"the repository lacks the object {name}")
        size = int(kind[2])
        yield bytes(answer[end + 1 : end + 1 + size])
        at = end + size + 2
