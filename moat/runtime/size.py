"""The size of a terminal."""

from __future__ import annotations

from moat.dataclass import dataclass
from moat.errors import ArgumentError


@dataclass(frozen=True, slots=True)
class Size:
    """Of a terminal, in characters; 0 is what a terminal without a size has."""

    columns: int
    rows: int

    def __post_init__(self) -> None:
        """Raises ArgumentError for what no terminal can have."""
        for name, value in (("columns", self.columns), ("rows", self.rows)):
            if type(value) is not int or not 0 <= value <= 65535:
                raise ArgumentError(f"{name} of a terminal must be a whole number up to 65535, not {value!r}")
