"""What an agent.yaml asks for that is the user's own: credentials, images and their making, files, ports.

Marketplaces of plugins, too, which the project's settings of Claude Code may want. Such files come with a
repository, so their word alone does not lend them (`confirmed`).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from moat.config import RunConfig
from moat.config.image import DEFAULT_BASE
from moat.dataclass import dataclass
from moat.paths import Home

_WORDS = 60  # characters of a script that are told


@dataclass(frozen=True, slots=True)
class Demand:
    kind: Literal["grant", "build", "image", "marketplace", "mount", "packages", "port"]
    name: str
    profile: str = ""  # of a grant, when it is not the usual one: another credential of the same name
    script: str = ""  # of a build

    @property
    def title(self) -> str:
        """For a person."""
        if self.kind == "build":
            return f"{self.name}: {_beginning(self.script)}"
        return f"{self.name} (profile {self.profile})" if self.profile else self.name

    def __str__(self) -> str:
        """What an answer is kept by: of a script all of it, because what was agreed to is not its name."""
        if self.kind == "build":
            script = self.script.encode(errors="surrogatepass")
            return f"build {self.name} {hashlib.sha256(script).hexdigest()}"
        return f"{self.kind} {self.title}"


def demands(
    settings: RunConfig, named: Iterable[str], runtime: str | None = None, marketplaces: Iterable[str] = ()
) -> tuple[Demand, ...]:
    """`named`: grants that the command line itself asks for. `runtime`: of the run, where that is known.

    `marketplaces`: of the user's own that the workspace brings in (`plugins.declared`).

    Raises GrantError for what is no grant name, VaultError for a profile that is none.
    """
    ports = (*settings.network.host, *(server.port for server in settings.mcp if server.local))
    return (
        *_grants(settings.needed_grants, named),
        *(_makings(settings) if settings.making and runtime != "embedded" else ()),
        *(_packages(settings.package_sources) if settings.package_sources else ()),
        *(Demand("marketplace", name) for name in marketplaces),
        *_mounts(settings),
        *(Demand("port", str(port)) for port in dict.fromkeys(ports)),
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


def _makings(settings: RunConfig) -> Iterable[Demand]:
    """Build hooks, and images but for those that Moat would take by itself.

    A hook is root in a container with the engine's network, where no policy, proxy or address guard holds.
    An image that is here may be private, and one that is not is fetched from wherever its name says.
    """
    for name in ("post_build_root", "post_build"):
        if script := getattr(settings.hooks, name):
            yield Demand("build", name, script=script)
    if settings.base_image not in {None, "", DEFAULT_BASE}:
        yield Demand("image", str(settings.base_image))
    for name, service in settings.services.items():
        if service.image and not _official(service.image, name):
            yield Demand("image", f"{service.image} for {name}")


def _packages(sources: frozenset[str]) -> Iterable[Demand]:
    """Registries of the user's own: what the file names there may be private, or may want what is."""
    from moat.runtime.deps import registries

    return [Demand("packages", name) for name in registries.own(sources)]


def _official(image: str, name: str) -> bool:
    """The image that Moat takes for the service, in whatever version. A name before a `/` is a registry's."""
    return "/" not in image and re.split("[:@]", image)[0] == name


def _beginning(script: str) -> str:
    """Its first command, and how much there is in all: the rest is in the file."""
    lines = [line for line in script.splitlines() if line.strip()]
    first = next((" ".join(line.split()) for line in lines if not line.lstrip().startswith("#")), "")
    if len(lines) < 2 and len(first) <= _WORDS:
        return first
    size = f"{len(lines)} lines" if len(lines) > 1 else f"{len(first)} characters"
    return f"{first[:_WORDS]} … ({size})"


def _mounts(settings: RunConfig) -> Iterable[Demand]:
    if not settings.mounts or settings.path is None:
        return ()
    place = Path(os.path.realpath(settings.path.parent))
    outside = (mount.source for mount in settings.mounts if not mount.source.is_relative_to(place))
    return [Demand("mount", str(source)) for source in dict.fromkeys(outside)]
