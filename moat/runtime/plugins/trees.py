"""Trees by content: the files of a plugin or a marketplace under a key that never means anything else.

Many runs mount one tree, read-only; so a tree is complete before it has its name.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from moat.paths import locked, private_dir
from moat.runtime.plugins.git import Bounds, Repository
from moat.runtime.plugins.tree import TreeWriter


class Trees:
    """The store at `root`. Any number of processes may use it."""

    def __init__(self, root: Path, bounds: Bounds) -> None:
        self.root = root
        self.bounds = bounds

    def find(self, key: str) -> Path | None:
        place = self.root / key
        return place if place.is_dir() else None

    def scratch(self) -> Path:
        """A directory on the same file system for what is not finished."""
        return private_dir(self.root / ".new")

    def of_commit(self, repository: Repository, commit: str) -> Path:
        """The files of `commit`; those of submodules are not in it. Raises TreeError, FetchError."""
        key = f"git-{commit}"
        with self._adding(key) as new:
            if new is not None:
                TreeWriter(new, self.bounds).commit(repository, commit)
        return self.root / key

    def of_directory(self, directory: Path, within: Path | None = None) -> Path:
        """A copy of `directory` as it is now; links to elsewhere in `within` become what they lead to.

        `.git` is left out. Both without links: what has become one since is not followed. Raises TreeError.
        """
        with tempfile.TemporaryDirectory(prefix="copy-", dir=self.scratch()) as name:
            new = Path(name) / "tree"
            new.mkdir()
            writer = TreeWriter(new, self.bounds)
            writer.directory(directory, within or directory)
            key = f"dir-{writer.digest()}"
            with locked(self.root / ".lock"):
                if self.find(key) is None:
                    os.rename(new, self.root / key)
        return self.root / key

    @contextlib.contextmanager
    def _adding(self, key: str) -> Iterator[Path | None]:
        """A new directory that gets the name `key` when the block ends well; None when there is one."""
        with locked(private_dir(self.root) / ".lock"):
            if self.find(key) is not None:
                yield None
                return
            with tempfile.TemporaryDirectory(prefix="tree-", dir=self.scratch()) as name:
                new = Path(name) / "tree"
                new.mkdir()
                yield new
                os.rename(new, self.root / key)
