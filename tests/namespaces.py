"""Namespaces that a test is in by itself."""

from __future__ import annotations

import os


def apart(*namespaces: str) -> list[str]:
    """The beginning of a command with these of `unshare`'s options: by root itself, or by root of a user namespace.

    Root of one could not read a clone in somebody's private home directory.
    """
    by_whom = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *by_whom, *namespaces]
