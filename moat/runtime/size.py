"""The size of a terminal."""

from __future__ import annotations

from moat.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Size:
    columns: int
    rows: int
