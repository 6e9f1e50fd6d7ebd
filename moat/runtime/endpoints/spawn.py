"""How a run finds the gateway: the one that is there, or one that it starts.

One gateway serves all runs of a MOAT_HOME. The lock that it holds for as long as it lives is its life sign,
`gateway.json` tells its port. Whoever starts one, adds a route or ends one holds `spawn.lock`: there are
never two, and none ends while a run is being added.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moat import config, errors, paths
from moat.dataclass import dataclass
from moat.errors import StartError, UsageError
from moat.paths import Home, locked, write_private

DEFAULT_PORT = 8443
_TRIES = 100  # ports from the first one on
LINGER = 300.0  # seconds that a gateway outlives the last run with endpoints
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "XDG_RUNTIME_DIR", "LD_LIBRARY_PATH", "MOAT_LOOP")
_PROGRAM = "import sys; sys.path.append(sys.argv[1]); import moat.runtime.endpoints.gateway as g; g.main()"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which port the user wants; `fixed`: that one or none."""

    port: int
    fixed: bool
    where: str = ""


def lock_path(home: Home) -> Path:
    return home.endpoints / "gateway.lock"


@contextlib.contextmanager
def changing(home: Home) -> Iterator[None]:
    """Hold the lock under which gateways come and go and routes are added. Blocks, for an instant."""
    with locked(home.endpoints / "spawn.lock"):
        yield


def alive(home: Home) -> bool:
    """Whether a gateway runs. Looks only."""
    return paths.owned(lock_path(home))


def port_of(home: Home) -> int | None:
    """The port of the gateway that runs; None: there is none."""
    if not alive(home):
        return None
    with contextlib.suppress(OSError, ValueError, KeyError):
        return int(json.loads((home.endpoints / "gateway.json").read_bytes())["port"])
    return None


def wanted_port(home: Home) -> Wanted:
    """MOAT_ENDPOINT_PORT, else `endpoints.port`, else the one of the last time, else 8443.

    Raises ConfigError, UsageError.
    """
    text = os.environ.get("MOAT_ENDPOINT_PORT")
    if text:
        if not text.isdigit() or not 1 <= int(text) <= 65535:
            raise UsageError(f"MOAT_ENDPOINT_PORT={text} is not a port")
        return Wanted(int(text), fixed=True, where="MOAT_ENDPOINT_PORT")
    configured = config.load_user(home).endpoints.port
    if configured is not None:
        return Wanted(configured, fixed=True, where="endpoints.port in config.yaml")
    with contextlib.suppress(OSError, ValueError):
        return Wanted(int((home.endpoints / "port").read_text()), fixed=False)
    return Wanted(DEFAULT_PORT, fixed=False)


def ensure(home: Home, wanted: Wanted, *, linger: float = LINGER) -> int:
    """The port of the gateway, which is started when there is none. To be called inside `changing`.

    A port that nobody asked for by number is the next free one, and remembered: addresses stay the same.
    Raises StartError. Blocks for the start of an interpreter at most.
    """
    running = port_of(home)
    if running is not None:
        if wanted.fixed and wanted.port != running:
            raise StartError(
                f"the gateway of endpoints runs on port {running}, {wanted.where} says {wanted.port}",
                hint="stop the runs that have endpoints; the gateway then ends by itself within minutes",
            )
        return running
    last = wanted.port if wanted.fixed else min(65535, wanted.port + _TRIES)
    message = {"home": str(home.root), "first": wanted.port, "last": last, "linger": linger} | {
        "users": sorted(_users())
    }
    answer = _start(home, message)
    if "port" not in answer:
        hint = answer.get("hint") or "`moat doctor`"
        raise StartError(str(answer.get("error", "the gateway of endpoints died")), hint=hint)
    port = int(answer["port"])
    if not wanted.fixed:
        write_private(home.endpoints / "port", f"{port}\n".encode())
    return port


def _users() -> set[int]:
    """Who may use the endpoints: ourselves, root, and whoever became root by sudo for this."""
    sudo = os.environ.get("SUDO_UID", "")
    return {0, os.getuid()} | ({int(sudo)} if os.getuid() == 0 and sudo.isdigit() else set())


def _start(home: Home, message: dict[str, Any]) -> dict[str, Any]:
    """Start the process, and hear what becomes of it."""
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    # -P and cwd: nothing is ever imported from a workspace, which an agent can write.
    with subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM, str(Path(errors.__file__).parent.parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        env=environment | {"MOAT_HOME": str(home.root)},
        start_new_session=True,
    ) as process:
        said, complaint = process.communicate(json.dumps(message).encode())
    for line in said.splitlines():
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                return value
    last = complaint.decode(errors="replace").strip().splitlines()[-1:]
    return {"error": ": ".join(["the gateway of endpoints died", *last])}
