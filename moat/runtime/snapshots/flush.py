"""Everything that was written, on the disk: for what is to outlive a crash, and for what is to be noticed."""

from __future__ import annotations

import contextlib
from pathlib import Path

# A page that was written to the disk is write-protected there: the next write gives the file new times.
_NOTICE = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"})


def flush(fd: int) -> bool:
    """Write the file system of `fd` to the disk; whether it notices later writes through old mappings."""
    import ctypes  # most runs end before anything is to be flushed

    with contextlib.suppress(OSError, AttributeError):
        return ctypes.CDLL(None, use_errno=True).syncfs(fd) == 0 and _type(fd) in _NOTICE
    return False


def _type(fd: int) -> str:
    """Of the file system, from Linux's list of mounts; empty where there is none."""
    fields = dict(line.split(":\t") for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines())
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.split(" ", 1)[0] == fields.get("mnt_id"):
            return line.rpartition(" - ")[2].split(" ")[0]
    return ""
