"""Regular expressions that are compiled when they are first used.

Compiled while modules are imported, those of a run would be 15 ms of every start, and it needs few of them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from re import compile as regex
else:

    class regex:  # noqa: N801 - stands for a function
        """As `re.compile`; what is wrong with the expression is found at the first use."""

        def __init__(self, expression: str | bytes, flags: int = 0) -> None:
            self._made = (expression, flags)

        def __getattr__(self, name: str) -> Any:
            value = getattr(re.compile(*self._made), name)
            setattr(self, name, value)  # from here on found without this method
            return value


__all__ = ["regex"]
