"""The note of a restore that has begun: `restore` in the store, gone when it is complete."""

from __future__ import annotations

import json

from moat.dataclass import dataclass
from moat.paths import write_private
from moat.runtime import codec
from moat.runtime.snapshots.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A restore that has begun and is not complete."""

    target: str  # snapshot ids
    safety: str
    paths: tuple[str, ...]
    at: float


def read_pending(store: Store) -> Pending | None:
    try:
        return codec.decode(Pending, json.loads((store.root / "restore").read_bytes()))
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


def write_pending(store: Store, pending: Pending) -> None:
    write_private(store.root / "restore", json.dumps(codec.encode(pending)).encode())
