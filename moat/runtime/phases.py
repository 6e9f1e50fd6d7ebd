"""The phases of a run's own life, from its journal: what it spent its time with."""

from __future__ import annotations

import datetime as dt

from moat.dataclass import dataclass
from moat.journal import keeping
from moat.journal.entry import entries
from moat.paths import Home

# What an event begins: the phase lasts until the next of them, and the last one until nothing is left to do.
_BEGINS = {
    "run.created": "preparing",  # grants, image, proxy, sandbox
    "sandbox.made": "waiting",  # for the first viewer, when somebody starts it in the foreground
    "run.started": "running",
    "run.command_ended": "releasing",
    "run.ended": "",
}


@dataclass(frozen=True, slots=True)
class Phase:
    name: str
    began: str  # as the journal has it
    seconds: float | None  # None: it goes on, or nobody saw its end


def phases(home: Home, run_id: str) -> list[Phase]:
    """In order. Empty when there is no journal."""
    path = home.run(run_id) / keeping.FILE
    seen = [(_BEGINS[e.event], e.at) for e in (entries(path) if path.exists() else ()) if e.event in _BEGINS]
    ends = [at for _, at in seen[1:]]
    return [
        Phase(name, began, _between(began, end))
        for (name, began), end in zip(seen, [*ends, None], strict=False)  # of none, none
        if name
    ]


def _between(began: str, end: str | None) -> float | None:
    if end is None:
        return None
    try:
        return (dt.datetime.fromisoformat(end) - dt.datetime.fromisoformat(began)).total_seconds()
    except ValueError:
        return None
