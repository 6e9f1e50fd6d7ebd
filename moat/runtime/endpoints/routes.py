"""Which runs have endpoints: `endpoints/routes/<run id>.json`, one file per run.

Only the owner of a run writes its file, so no update is lost. A file counts while the run's lock is held;
what a killed supervisor left is passed over, and removed by the next run that adds one.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from moat.dataclass import dataclass
from moat.errors import StartError
from moat.paths import Home, write_private
from moat.runtime import records

_SETTLED = 0.1  # seconds after which a directory's time tells every change


@dataclass(frozen=True, slots=True)
class Endpoint:
    port: int  # in the sandbox
    socket: str  # the run's ingress for it


@dataclass(frozen=True, slots=True)
class Route:
    id: str
    name: str
    endpoints: Mapping[str, Endpoint]


def directory(home: Home) -> Path:
    return home.endpoints / "routes"


def add(home: Home, route: Route) -> None:
    """Raises StartError when a run that is alive has the name. To be called under the gateway's lock."""
    for other in read_all(home):
        if not alive(home, other):
            remove(home, other.id)
        elif other.name == route.name and other.id != route.id:
            raise StartError(
                f"the run {other.name} ({other.id}) is alive and has endpoints under this name",
                hint=f"give this one another name (--name), or `moat stop {other.id}`",
            )
    value = {"id": route.id, "name": route.name}
    ends = {name: asdict(endpoint) for name, endpoint in route.endpoints.items()}
    write_private(directory(home) / f"{route.id}.json", json.dumps(value | {"endpoints": ends}).encode())


def remove(home: Home, run_id: str) -> None:
    (directory(home) / f"{run_id}.json").unlink(missing_ok=True)


def alive(home: Home, route: Route) -> bool:
    return records.owned(home.run(route.id))


def read_all(home: Home) -> list[Route]:
    """Every route there is a file of, also of runs that are dead; by name."""
    found: list[Route] = []
    with contextlib.suppress(FileNotFoundError):
        paths = [directory(home) / name for name in os.listdir(directory(home)) if name.endswith(".json")]
        found = [route for route in map(_read, paths) if route is not None]
    return sorted(found, key=lambda route: (route.name, route.id))


def _read(path: Path) -> Route | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        value = json.loads(path.read_bytes())
        ends = {name: Endpoint(**endpoint) for name, endpoint in value["endpoints"].items()}
        return Route(value["id"], value["name"], ends)
    return None


class Routes:
    """The routes as the gateway sees them: read again when the directory has changed."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._known: list[Route] = []
        self._stamp = -1

    def alive(self) -> list[Route]:
        return [route for route in self._all() if alive(self._home, route)]

    def find(self, name: str) -> Route | None:
        """The living run of that name."""
        named = [route for route in self._all() if route.name == name]
        return next((route for route in named if alive(self._home, route)), None)

    def _all(self) -> list[Route]:
        try:
            stamp = directory(self._home).stat().st_mtime_ns
        except OSError:
            return []
        if stamp != self._stamp:
            self._known = read_all(self._home)
            # Two changes within one tick of the clock look like one: a young stamp is not believed again.
            self._stamp = stamp if time.time_ns() - stamp > _SETTLED * 1e9 else -1
        return self._known
