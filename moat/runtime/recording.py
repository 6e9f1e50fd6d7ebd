"""Nothing happens unrecorded: whether the network of a run is closed, and a word to whoever watches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moat.journal import Journal
from moat.proxy.events import Denial

if TYPE_CHECKING:
    from moat.proxy.trace import Trace
    from moat.runtime.witness import Witness


class Recording:
    """What a Proxy asks as `ready` and `on_use`."""

    def __init__(self, journal: Journal, trace: Trace, witness: Witness, tell: Callable[[str], None]) -> None:
        self._journal = journal
        self._trace = trace
        self._witness = witness
        self._tell = tell
        self._closed = False

    def ready(self) -> Denial | None:
        """Why no exchange may start now, or None."""
        self._journal.probe()
        return self._told(self._trace.ready() or self._witness.ready())

    def on_use(self, exchange: int, host: str, grants: tuple[str, ...]) -> Denial | None:
        """Credentials are about to go to `host`, maybe long after `ready`. Why they may not, or None."""
        self._journal.probe()
        return self._told(self._witness.on_use(exchange, host, grants))

    def _told(self, denial: Denial | None) -> Denial | None:
        """`denial`; who watches hears of the first, and of the end."""
        if denial is None and not self._closed:
            return None
        if denial is None:
            self._closed = False
            self._tell("the network of this run is open again: what it does can be recorded")
        elif not self._closed:
            self._closed = True
            self._tell(f"warning: the network of this run is closed: {denial.reason}")
        return denial
