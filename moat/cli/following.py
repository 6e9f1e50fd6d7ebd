"""Files of a run that grow while it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from moat.paths import Home
from moat.runtime import records
from moat.runtime.records import RunRecord

_POLL = 0.1  # seconds between two looks at a growing file
_PIECE = 65536


def follow(path: Path, start: int, alive: Callable[[], bool]) -> Iterator[bytes]:
    """The bytes of `path` from `start`, and what is added to it for as long as `alive` says so."""
    with path.open("rb") as file:
        file.seek(start)
        going = True
        while going:
            going = alive()  # asked first: what was written until then is read below
            while data := file.read(_PIECE):
                yield data
            if going:
                time.sleep(_POLL)


def alive_while(home: Home, record: RunRecord, *, follow: bool) -> Callable[[], bool]:
    directory = home.run(record.id)

    def alive() -> bool:
        return follow and _going(records.read(home, record.id)) and records.owned(directory)

    return alive


def _going(record: RunRecord | None) -> bool:
    return record is not None and not record.state.ended
