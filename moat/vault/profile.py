"""Which set of credentials is meant: what `MOAT_PROFILE` says, or `--profile`, which sets it."""

from __future__ import annotations

import os
import re

from moat.errors import VaultError

VARIABLE = "MOAT_PROFILE"
DEFAULT = "default"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def current() -> str:
    """Its name. Raises VaultError when it is not a usable one."""
    name = os.environ.get(VARIABLE) or DEFAULT
    if not _NAME.fullmatch(name):
        raise VaultError(f"{VARIABLE}={name} is not a profile name", hint="letters, digits, . _ -")
    return name


def flag() -> tuple[str, ...]:
    """What a command that is told to the user needs, to mean the same one in whatever shell."""
    name = os.environ.get(VARIABLE, "")
    return ("--profile", name) if _NAME.fullmatch(name) else ()
