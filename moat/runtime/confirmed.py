"""What the user has said yes to, for each workspace: `~/.moat/workspaces.json`, which may be edited.

{"/srv/shop": ["grant github", "port 5432"]}
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from moat.paths import Home, locked, write_private
from moat.runtime.demands import Demand


def unconfirmed(home: Home, place: Path, wanted: Sequence[Demand]) -> tuple[Demand, ...]:
    """Those of `wanted` that nobody has said yes to for the workspace at `place`, a real path."""
    known = _read(home).get(str(place), ())
    return tuple(demand for demand in wanted if str(demand) not in known)


def confirm(home: Home, place: Path, given: Iterable[Demand]) -> None:
    """Remember a yes, besides those before. Raises OSError, MoatError when it cannot be written."""
    with locked(home.root / "workspaces.lock"):
        every = _read(home)
        every[str(place)] = sorted({*every.get(str(place), ()), *map(str, given)})
        write_private(_file(home), json.dumps(every, indent=1).encode() + b"\n")


def _file(home: Home) -> Path:
    return home.root / "workspaces.json"


def _read(home: Home) -> dict[str, list[str]]:
    """Nothing of what is damaged, or could be somebody else's answer: it is asked once more."""
    try:
        with open(_file(home), "rb") as file:
            info = os.fstat(file.fileno())
            if info.st_uid not in {0, os.geteuid()} or info.st_mode & 0o022 or not stat.S_ISREG(info.st_mode):
                return {}
            found = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        place: [text for text in texts if isinstance(text, str)]
        for place, texts in found.items()
        if isinstance(texts, list)
    }
