"""Directories of a tree, opened one below the other: a swapped symbolic link leads nowhere."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Places:
    """Open directories below a root; keeps the way to the last one."""

    def __init__(self, root: int) -> None:
        """`root` stays the caller's to close."""
        self._root = root
        self._way: list[tuple[str, int]] = []

    def open(self, path: str) -> int:
        """The directory `path` ("" is the root); valid until the next call. Raises OSError."""
        names = path.split("/") if path else []
        same = 0
        while same < len(names) and same < len(self._way) and self._way[same][0] == names[same]:
            same += 1
        self._leave(same)
        fd = self._way[-1][1] if self._way else self._root
        for name in names[same:]:
            fd = os.open(name, _DIRECTORY, dir_fd=fd)
            self._way.append((name, fd))
        return fd

    def parent(self, path: str) -> tuple[int, str]:
        """The open directory that holds `path`, and its name there. Raises OSError."""
        before, _, name = path.rpartition("/")
        return self.open(before), name

    def forget(self) -> None:
        """What was opened may have been replaced."""
        self._leave(0)

    def _leave(self, depth: int) -> None:
        while len(self._way) > depth:
            os.close(self._way.pop()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.forget()
