"""What a run had to say while nobody was attached: for the next one who looks, once."""

from __future__ import annotations

import datetime as dt

_MOST = 20  # the newest; a display remembers no more either


class Unheard:
    def __init__(self) -> None:
        self._notes: dict[str, dt.datetime] = {}

    def keep(self, text: str) -> None:
        """What came up again has the time of the last time."""
        self._notes.pop(text, None)
        self._notes[text] = dt.datetime.now().astimezone()
        if len(self._notes) > _MOST:
            del self._notes[next(iter(self._notes))]

    def take(self) -> list[str]:
        """All of it, oldest first, with its time; there is nothing left then."""
        notes, self._notes = self._notes, {}
        return [f"{text} ({when:%a %H:%M}, nobody was attached)" for text, when in notes.items()]
