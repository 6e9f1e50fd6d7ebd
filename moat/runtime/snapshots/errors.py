"""What can go wrong with snapshots."""

from __future__ import annotations

import errno
import os

from moat.errors import MoatError

TOO_MANY_HINT = "leave some out with snapshots.exclude.additional in agent.yaml, or run with --no-snapshots"


class SnapshotError(MoatError):
    """A snapshot could not be taken, read or restored. What was there before is still there."""


def disk_error(error: OSError, place: str | os.PathLike[str]) -> SnapshotError:
    """An error of the disk that holds the store, in words."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return no_space(place)
    return SnapshotError(f"cannot write snapshots in {os.fspath(place)}: {error.strerror}")


def no_space(place: str | os.PathLike[str]) -> SnapshotError:
    return SnapshotError(
        f"no space left for a snapshot in {os.fspath(place)}",
        hint="free some with `moat snapshot prune` or `moat clean`, leave big directories out with "
        "snapshots.exclude.additional in agent.yaml, or run with --no-snapshots",
    )
