"""What Moat keeps on this machine beside its records: images in the engine, downloads in `~/.moat/cache`.

Only what carries Moat's label, and only what nothing uses, is ever removed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from moat.dataclass import dataclass
from moat.errors import StartError
from moat.paths import Home, locked
from moat.runtime import engine_socket
from moat.runtime.engine_socket import EngineUnreachableError
from moat.runtime.records import RunRecord, State
from moat.runtime.volumes import size_of

_LABEL = "moat.image"


@dataclass(frozen=True, slots=True)
class StoredImage:
    id: str
    tag: str  # empty: a newer one has taken it
    contents: str
    created: float  # seconds since the epoch
    size: int  # bytes; layers that images share are counted for each
    in_use: bool  # by a container, running or not


def images() -> list[StoredImage]:
    """Newest first; none without an engine. Blocks."""
    filters = quote('{"label": ["moat.image"]}')
    try:
        found = engine_socket.ask("GET", f"/images/json?filters={filters}").body
        used = {str(item.get("ImageID")) for item in engine_socket.containers()}
    except EngineUnreachableError:
        return []
    made = [_image(item, used) for item in found if isinstance(item, dict)] if isinstance(found, list) else []
    return sorted(made, key=lambda image: image.created, reverse=True)


def _image(item: dict[str, Any], used: set[str]) -> StoredImage:
    tags = [tag for tag in item.get("RepoTags") or [] if tag != "<none>:<none>"]
    return StoredImage(
        id=str(item["Id"]),
        tag=str(tags[0]) if tags else "",
        contents=str((item.get("Labels") or {}).get("moat.contents", "")),
        created=float(item.get("Created", 0)),
        size=int(item.get("Size", 0)),
        in_use=str(item["Id"]) in used,
    )


def remove_image(image: StoredImage) -> bool:
    """False when something uses it meanwhile: the engine refuses then, and nothing is forced. Blocks."""
    for name in [image.tag] if image.tag else [image.id]:
        status = engine_socket.ask("DELETE", f"/images/{quote(name, safe='')}", timeout=120).status
        if status not in {200, 404}:
            return False
    return True


@dataclass(frozen=True, slots=True)
class Downloads:
    """Packages, plugins, and what was unpacked or copied of them. Everything can be fetched again."""

    packages: Path
    plugins: Path
    size: int  # bytes


def downloads(home: Home) -> Downloads:
    packages, plugins = home.cache / "docker", home.plugin_trees
    return Downloads(packages, plugins, size_of(packages) + size_of(plugins))


def remove_downloads(found: Downloads) -> None:
    """Commits that plugins are pinned to stay noted: the same ones are fetched again. Blocks."""
    shutil.rmtree(found.packages, ignore_errors=True)
    if found.plugins.is_dir():
        with locked(found.plugins / ".lock"):  # nobody is just adding a tree
            for path in found.plugins.iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)


def check_unused(runs: Iterable[RunRecord], *, and_downloads: bool) -> None:
    """Raises StartError while a run is being started, whose image has no container yet.

    With `and_downloads` also while one lives: it may have some of them mounted.
    """
    states = {run.state for run in runs}
    if states & {State.CREATED, State.STARTING}:
        raise StartError("a run is just being started", hint="try again in a moment")
    if and_downloads and not all(state.ended for state in states):
        raise StartError(
            "fetched packages and plugins may be in use", hint="stop the runs first: moat stop --all"
        )
