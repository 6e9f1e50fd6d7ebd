"""The reflogs of a repository for a run in one of its worktrees: a copy, and what it added brought back.

Git appends to a reflog through whatever symbolic link is in its place, with words that a branch's name can
choose. So a sandbox that works in a worktree never has the real ones, to which the user's commits in the main
working tree are appended: it gets a copy, and afterwards the lines that it added are brought back. A log that
it rewrote (`git reflog expire`) stays as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from moat.paths import private_dir, write_private
from moat.regex import regex
from moat.runtime.sandbox import Mount
from moat.runtime.snapshots.errors import SnapshotError
from moat.runtime.snapshots.ignore import Rules
from moat.runtime.snapshots.places import Places
from moat.runtime.snapshots.walk import open_root, walk

LOGS = "logs"
_COPY, _BASE = "reflogs", "reflogs.json"  # of a run; gone when they were brought back
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LARGEST = 64 << 20  # bytes of one log
_WORDS = rb"[^\x00-\x1f\x7f]*"
_LINES = regex(rb"(?:[0-9a-f]{40,64} [0-9a-f]{40,64} %b> \d+ [+-]\d{4}(?:\t%b)?\n)+" % (_WORDS, _WORDS))


def lend(common: Path, run: Path) -> tuple[Mount, ...]:
    """Copy the logs of the repository `common` into the directory of a run. Nothing where there are none."""
    if not (common / LOGS).is_dir():
        return ()
    copy = private_dir(run / _COPY)
    bases = {}
    for path, content in _logs(common / LOGS):
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        (copy / path).write_bytes(content)
        bases[path] = (len(content), _digest(content))
    _give(copy, os.stat(common / LOGS))
    write_private(run / _BASE, json.dumps(bases).encode())
    return (Mount.of(copy, str(common / LOGS)),)


def bring_back(common: Path, run: Path) -> None:
    """Append what the run added, once. What cannot be is left out: the branches are as they are."""
    try:
        bases = json.loads((run / _BASE).read_bytes())
    except (OSError, ValueError):
        return
    with contextlib.suppress(SnapshotError):
        root = open_root(common / LOGS)
        try:
            for path, content in _logs(Path(os.path.realpath(run)) / _COPY):
                size, digest = bases.get(path, (0, _digest(b"")))
                lines = content[size:]
                added = _digest(content[:size]) == digest and _LINES.fullmatch(lines)
                if added and (path in bases or _is_reference(common, path)):
                    _append(root, path, lines)
        finally:
            os.close(root)
    import shutil  # most runs lend none

    with contextlib.suppress(OSError):  # a home that turned read-only
        (run / _BASE).unlink(missing_ok=True)
    shutil.rmtree(run / _COPY, ignore_errors=True)


def _logs(place: Path) -> Iterator[tuple[str, bytes]]:
    """Every log below `place`, which may be the sandbox's, with its content."""
    root = open_root(place)
    try:
        for item in walk(root, Rules(), lambda _count: None):
            if not stat.S_ISREG(item.info.st_mode) or item.info.st_size > _LARGEST:
                continue
            with contextlib.suppress(OSError):
                fd = os.open(item.name, _READ, dir_fd=item.parent)
                with os.fdopen(fd, "rb") as file:
                    if stat.S_ISREG(os.fstat(fd).st_mode):
                        yield item.path, file.read(_LARGEST)
    finally:
        os.close(root)


def _append(root: int, path: str, lines: bytes) -> None:
    names = path.split("/")[:-1]
    with contextlib.suppress(OSError), Places(root) as places:
        for count in range(1, len(names) + 1):
            with contextlib.suppress(FileExistsError):
                parent, name = places.parent("/".join(names[:count]))
                os.mkdir(name, 0o755, dir_fd=parent)
        parent, name = places.parent(path)
        fd = os.open(name, _APPEND, 0o644, dir_fd=parent)
        with os.fdopen(fd, "wb") as file:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                file.write(lines)


def _is_reference(common: Path, path: str) -> bool:
    """A log without its branch would be in the way of a branch below that name."""
    try:
        return stat.S_ISREG(os.lstat(common / path).st_mode)
    except OSError:
        return False


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _give(place: Path, owner: os.stat_result) -> None:
    """To the owner of the repository, where Moat is run by root on somebody else's."""
    place.chmod(0o755)
    if os.geteuid() == 0:
        for directory, _, files in os.walk(place):
            for path in (Path(directory), *(Path(directory, name) for name in files)):
                os.chown(path, owner.st_uid, owner.st_gid)
