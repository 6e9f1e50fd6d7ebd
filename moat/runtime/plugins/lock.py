"""Which commit a branch or tag was when it was last looked at: the second run fetches nothing.

A pin belongs to the way it was reached (`own`, `public`, `ssh:host`). A workspace that names a repository
which only the user may read must not get it because the user once fetched it for themselves.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from moat.config.plugins import redacted
from moat.paths import locked, write_private
from moat.runtime.plugins.git import Access
from moat.runtime.plugins.json_file import UnreadableError, read_object
from moat.runtime.plugins.source import Source

OWN = "own"
PUBLIC = "public"


class Lock:
    """The record in the file at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def commit(self, source: Source, access: Access) -> str | None:
        """The pinned commit that somebody with `access` may know of."""
        pins = self._read().get(_key(source))
        if not isinstance(pins, dict):
            return None
        for way in (OWN,) if access.own else (PUBLIC, *(f"ssh:{host}" for host in sorted(access.ssh))):
            pin = pins.get(way)
            if isinstance(pin, dict) and isinstance(pin.get("commit"), str):
                return str(pin["commit"])
        return None

    def pin(self, source: Source, way: str, commit: str) -> None:
        """Keep `commit`; another process may write at the same moment."""
        with locked(self._path.with_suffix(".lock")):
            pins = self._read()
            ways = pins.setdefault(_key(source), {})
            ways[way] = {"commit": commit, "fetched_at": round(time.time())}
            write_private(self._path, json.dumps(pins, indent=2, sort_keys=True).encode())

    def _read(self) -> dict[str, Any]:
        try:
            return read_object(self._path)
        except UnreadableError:
            return {}  # a pin that cannot be read is fetched again


def _key(source: Source) -> str:
    return f"{source.kind} {redacted(source.location)} {source.commit or source.ref or 'HEAD'}"
