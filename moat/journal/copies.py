"""Copies entries to second places as they happen, one thread each, so that none of them can hold a run up.

What cannot be delivered is tried again. `failed` of a required place closes the network of the run; a
place that is not required may miss entries, and the journal tells how many.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moat.journal.sinks import Sink

_WAITING = 10_000  # entries kept for one place
_BATCH = 200
_AGAIN = (0.2, 0.5, 1.0, 2.0, 5.0)  # seconds until the next try; the last one from then on
_STUCK = 10.0  # seconds after which an entry that is not delivered counts as a failure

Tell = Callable[..., object]  # Journal.record


class Copier:
    """Delivers to one place, in order."""

    def __init__(self, sink: Sink, *, required: bool) -> None:
        self.name = sink.name
        self.required = required
        self._sink = sink
        self._changed = threading.Condition()
        self._waiting: list[bytes] = []
        self._since = 0.0  # when the oldest of them came
        self._missed = 0
        self._error: OSError | None = None
        self._closing = False
        self._tell: Tell = _nobody
        self._thread = threading.Thread(target=self._run, name="journal copy", daemon=True)

    def start(self, tell: Tell) -> None:
        """Begin to deliver. `tell` records what goes wrong."""
        self._tell = tell
        self._thread.start()

    @property
    def failed(self) -> OSError | None:
        """Why entries are not where they should be."""
        if self._error is not None:
            return self._error
        with self._changed:
            stuck = self._waiting and time.monotonic() - self._since > _STUCK
        return TimeoutError(errno.ETIMEDOUT, "it takes nothing") if stuck else None

    def put(self, lines: Sequence[bytes]) -> None:
        """Take lines over; never blocks."""
        with self._changed:
            if not self._waiting:
                self._since = time.monotonic()
            room = max(0, _WAITING - len(self._waiting))
            self._waiting += lines[:room]
            self._missed += len(lines[room:])
            self._changed.notify_all()

    def delivered(self, seconds: float) -> bool:
        """Whether everything so far is delivered, at the latest after `seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, seconds)

    def close(self, seconds: float) -> bool:
        """Deliver what waits for at most `seconds`, then stop. False: something was not delivered."""
        done = self.delivered(seconds)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(_AGAIN[0])
        return done

    def _run(self) -> None:
        tries = 0
        while (batch := self._next()) is not None:
            try:
                self._sink.send(batch)
            except Exception as error:  # a mistake of ours must not end the thread unseen
                self._note_failure(error if isinstance(error, OSError) else OSError(errno.EIO, repr(error)))
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, _AGAIN[min(tries, len(_AGAIN) - 1)])
                tries += 1
            else:
                tries = 0
                self._note_success(len(batch))
        self._sink.close()

    def _next(self) -> list[bytes] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            return None if self._closing else self._waiting[:_BATCH]

    def _note_failure(self, error: OSError) -> None:
        first, self._error = self._error is None, error
        if first:
            self._tell("copy.failed", to=self.name, error=error.strerror or str(error))

    def _note_success(self, count: int) -> None:
        with self._changed:
            del self._waiting[:count]
            self._since = time.monotonic()
            missed, self._missed = self._missed, 0
            self._changed.notify_all()
        again, self._error = self._error is not None, None
        if again or missed:
            self._tell("copy.resumed", to=self.name, missed=missed)


class Copies:
    """All second places of a run."""

    def __init__(self, copiers: Sequence[Copier] = ()) -> None:
        self._copiers = tuple(copiers)

    def start(self, tell: Tell) -> None:
        for copier in self._copiers:
            copier.start(tell)

    def put(self, lines: Sequence[bytes]) -> None:
        for copier in self._copiers:
            copier.put(lines)

    @property
    def failed(self) -> tuple[str, OSError] | None:
        """The first required place that does not get its entries, and why."""
        for copier in self._copiers:
            if copier.required and (error := copier.failed) is not None:
                return copier.name, error
        return None

    def arrived(self, seconds: float) -> tuple[str, OSError] | None:
        """None when all required places have everything so far, after at most `seconds`; else as `failed`."""
        deadline = time.monotonic() + seconds
        for copier in self._copiers:
            if copier.required and not copier.delivered(max(0.0, deadline - time.monotonic())):
                return copier.name, copier.failed or TimeoutError(errno.ETIMEDOUT, "it takes nothing")
        return None

    def close(self, seconds: float) -> list[str]:
        """Stop; names of the places that did not get everything."""
        deadline = time.monotonic() + seconds
        return [c.name for c in self._copiers if not c.close(max(0.0, deadline - time.monotonic()))]


def _nobody(*_arguments: object, **_data: object) -> None:
    """Nothing is told before `start`."""
