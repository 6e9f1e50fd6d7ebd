"""One package of a registry, and the versions that were found for what people write."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any, Literal

from moat.dataclass import dataclass
from moat.paths import write_private

_EXACT = {
    "npm": re.compile(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?"),
    # Three numbers say everything on the Python index too, as far as its programs go.
    "pypi": re.compile(r"\d+\.\d+\.\d+([A-Za-z0-9.+]*)"),
}


@dataclass(frozen=True, slots=True)
class Package:
    """`version` may be a prefix (`22`), a tag (`latest`) or empty (the newest) until it is resolved."""

    registry: Literal["npm", "pypi"]
    name: str
    version: str = ""

    @property
    def exact(self) -> bool:
        return _EXACT[self.registry].fullmatch(self.version) is not None

    def __str__(self) -> str:
        return f"{self.name} {self.version}".rstrip()


class Memory:
    """`versions.json`: what a prefix or tag meant when it was looked up last."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def recall(self, package: Package) -> str | None:
        entry = self.all().get(_key(package))
        return str(entry["version"]) if isinstance(entry, dict) and entry.get("version") else None

    def keep(self, package: Package, version: str) -> None:
        entry = {"version": version, "at": time.time()}
        write_private(self._path, json.dumps(self.all() | {_key(package): entry}).encode())

    def all(self) -> dict[str, Any]:
        """By `registry:name@as written`; `at` is the time of the look-up, in seconds since the epoch."""
        try:
            value = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}


def _key(package: Package) -> str:
    return f"{package.registry}:{package.name}@{package.version}"


def newest(versions: list[str], prefix: str) -> str | None:
    """The highest plain release (numbers and dots) that is `prefix` or begins with it; "" is any."""
    wanted = prefix.split(".") if prefix else []
    found = [v for v in versions if re.fullmatch(r"\d+(\.\d+)*", v) and v.split(".")[: len(wanted)] == wanted]
    return max(found, key=lambda v: [int(part) for part in v.split(".")], default=None)
