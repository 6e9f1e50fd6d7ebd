"""Which runtime makes the sandbox of a run."""

from __future__ import annotations

import os
import socket

from moat.errors import StartError, UsageError
from moat.runtime.sandbox import Runtime

NAMES = ("docker", "embedded")


def choose(wanted: str | None) -> str:
    """The flag or file's choice, else MOAT_RUNTIME, else docker when its engine answers, else embedded.

    Raises UsageError for a name that is none.
    """
    for source, name in (("runtime", wanted), ("MOAT_RUNTIME", os.environ.get("MOAT_RUNTIME"))):
        if name in NAMES:
            return name
        if name:
            raise UsageError(f"{source}: no runtime {name!r}", hint="use `docker` or `embedded`")
    return "docker" if _engine_listens() else "embedded"


def runtime(name: str) -> Runtime:
    """The runtime by name; imports it. Raises StartError for an unknown one (a record of the future)."""
    if name == "docker":
        from moat.runtime.docker import DockerRuntime

        return DockerRuntime()
    if name == "embedded":
        from moat.runtime.embedded import EmbeddedRuntime

        return EmbeddedRuntime()
    raise StartError(f"no runtime {name!r}")


def _engine_listens() -> bool:
    """A connection is enough to tell; whether the engine can do its work is `moat doctor`'s question."""
    from moat.runtime.engine_socket import EngineUnreachableError, engine_socket

    try:
        path = engine_socket()
    except EngineUnreachableError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
