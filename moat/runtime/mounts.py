"""What is mounted below Moat's own directories: the user's files, which must not go when a directory does."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

_DETACH = 2  # MNT_DETACH: also while somebody uses it


def points() -> list[str]:
    """Every mount point that this process sees, outer ones first. Empty where the kernel does not tell."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            fields = [line.split(" ")[4] for line in file]
    except FileNotFoundError:
        return []
    return [field.encode("utf-8", "surrogateescape").decode("unicode_escape") for field in fields]


def below(place: Path) -> list[str]:
    return [point for point in points() if point.startswith(f"{place}/")]


def remove(place: Path) -> None:
    """Unmount what is below `place` and delete the directory; one that is gone is fine.

    Raises OSError when something stays mounted. Then nothing is deleted, for it would be the user's files.
    """
    import shutil  # at the end of a run, and not before its command starts

    if mounted := below(place):
        _unmount(reversed(mounted))
    if left := below(place):
        raise OSError(errno.EBUSY, "it cannot be unmounted", left[0])
    shutil.rmtree(place, ignore_errors=True)


def _unmount(points: Iterable[str]) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    for point in points:
        libc.umount2(os.fsencode(point), _DETACH)
