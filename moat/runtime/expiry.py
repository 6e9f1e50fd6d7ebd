"""A word to whoever watches a run, and to its journal, before a credential of it ends."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterable

import anyio

from moat.errors import GrantError, VaultError
from moat.grants import CredentialInfo
from moat.runtime.parts import Addition, Part, RunContext
from moat.vault.expiry import LAST, SOON, ending, told
from moat.vault.index import timestamp

_LOOK = 20.0  # seconds between two looks: a credential may be granted again at any time


class ExpiryPart(Part):
    name = "expiry"

    def __init__(self) -> None:
        self._run: RunContext | None = None

    async def prepare(self, run: RunContext) -> Addition:
        self._run = run
        return Addition()

    async def started(self) -> None:
        assert self._run is not None
        self._run.start("expiry", self._watch)

    async def _watch(self) -> None:
        """Twice for each end, at most. What is near at the start was told by who started the run."""
        assert self._run is not None
        known: set[tuple[str, str, dt.timedelta]] = set()
        heard = False
        while True:
            infos, now = self._infos(), dt.datetime.now(dt.UTC)
            for info in ending(infos, now, SOON):
                assert info.expires_at is not None
                mark = LAST if info.expires_at <= now + LAST else SOON
                end = (info.name, timestamp(info.expires_at), mark)
                if end not in known:
                    known.add(end)
                    self._run.journal.record("grant.ending", grant=end[0], at=end[1])
                    if heard:
                        self._run.tell(f"warning: {told(info, now)}")
            heard = True
            await anyio.sleep(_until_next(infos, now))

    def _infos(self) -> list[CredentialInfo]:
        assert self._run is not None
        found = []
        for name in self._run.request.grants:
            with contextlib.suppress(GrantError, VaultError):  # revoked: its next use tells
                if self._run.vault is not None:
                    found.append(self._run.vault.info(name))
        return found


def _until_next(infos: Iterable[CredentialInfo], now: dt.datetime) -> float:
    """Seconds until there is something to tell, or to look again."""
    times = [
        (info.expires_at - mark - now).total_seconds()
        for info in infos
        if info.expires_at is not None
        for mark in (SOON, LAST)
    ]
    return min([_LOOK, *(time + 0.05 for time in times if time > 0)])
