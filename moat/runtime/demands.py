"""What an agent.yaml asks for that is the user's own: credentials, ports of this machine, files.

The file comes with a repository, so its word alone does not lend them (`confirmed`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from moat.config import RunConfig
from moat.dataclass import dataclass
from moat.paths import Home


@dataclass(frozen=True, slots=True)
class Demand:
    kind: Literal["grant", "port", "mount"]
    name: str
    profile: str = ""  # of a grant, when it is not the usual one: another credential of the same name

    @property
    def title(self) -> str:
        return f"{self.name} (profile {self.profile})" if self.profile else self.name

    def __str__(self) -> str:
        return f"{self.kind} {self.title}"


def demands(settings: RunConfig, named: Iterable[str]) -> tuple[Demand, ...]:
    """In the order of the file. `named`: grants that the command line itself asks for.

    Raises GrantError for what is no grant name, VaultError for a profile that is none.
    """
    ports = (*settings.network.host, *(server.port for server in settings.mcp if server.local))
    return (
        *_grants(settings.needed_grants, named),
        *(Demand("port", str(port)) for port in dict.fromkeys(ports)),
        *_mounts(settings),
    )


def lendable(home: Home, wanted: tuple[Demand, ...]) -> tuple[Demand, ...]:
    """Without the grants that are not there, which the run will miss. Raises VaultError."""
    if not any(demand.kind == "grant" for demand in wanted):
        return wanted
    from moat.vault import open_vault

    stored = {info.name for info in open_vault(home).list()}
    return tuple(demand for demand in wanted if demand.kind != "grant" or demand.name in stored)


def _grants(wanted: tuple[str, ...], named: Iterable[str]) -> Iterable[Demand]:
    if not wanted:
        return ()
    from moat.runtime.granted import unique
    from moat.vault.profile import DEFAULT, current

    profile = "" if current() == DEFAULT else current()
    known = set(unique(named))
    return [Demand("grant", name, profile) for name in unique(wanted) if name not in known]


def _mounts(settings: RunConfig) -> Iterable[Demand]:
    if not settings.mounts or settings.path is None:
        return ()
    place = Path(os.path.realpath(settings.path.parent))
    outside = (mount.source for mount in settings.mounts if not mount.source.is_relative_to(place))
    return [Demand("mount", str(source)) for source in dict.fromkeys(outside)]
