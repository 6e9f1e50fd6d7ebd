"""The note of a renewal that is under way, on the disk before the server is asked.

A server that replaces refresh tokens may have done so when our process dies, or the line does, before the
answer is stored. Nothing can bring that answer back. What is left tells the next process why the server
refuses, so that nobody has to guess. It holds no token, only the hash of one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from moat.dataclass import dataclass
from moat.paths import sync_directory, write_private


@dataclass(frozen=True, slots=True)
class Attempt:
    """At most one note for each login. The caller holds the login's lock."""

    path: Path

    def begin(self, refresh: str) -> None:
        """Note that `refresh` is about to be spent; on the disk when this returns. Raises OSError."""
        write_private(self.path, _mark(refresh))
        sync_directory(self.path.parent)

    def is_open(self, refresh: str) -> bool:
        """Whether an earlier attempt with `refresh` may have been answered without our keeping the answer."""
        try:
            return self.path.read_bytes() == _mark(refresh)
        except OSError:
            return False

    def end(self) -> None:
        """The answer is stored."""
        with contextlib.suppress(OSError):  # what stays behind names a token that is no longer stored
            os.unlink(self.path)


def _mark(refresh: str) -> bytes:
    return hashlib.sha256(refresh.encode()).hexdigest().encode()
