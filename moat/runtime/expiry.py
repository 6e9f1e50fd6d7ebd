"""A word to whoever watches a run, and to its journal, before a credential of it ends."""

from __future__ import annotations

import contextlib
import datetime as dt

import anyio

from moat.errors import GrantError, VaultError
from moat.grants import CredentialInfo
from moat.runtime.parts import Addition, Part, RunContext
from moat.vault.expiry import SOON, ending, told
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
        """Each end is told once."""
        assert self._run is not None
        known: set[tuple[str, str]] = set()
        while True:
            now = dt.datetime.now(dt.UTC)
            for info in ending(self._infos(), now, SOON):
                assert info.expires_at is not None
                end = (info.name, timestamp(info.expires_at))
                if end not in known:
                    known.add(end)
                    self._run.tell(f"warning: {told(info, now)}")
                    self._run.journal.record("grant.ending", grant=end[0], at=end[1])
            await anyio.sleep(_LOOK)

    def _infos(self) -> list[CredentialInfo]:
        assert self._run is not None
        found = []
        for name in self._run.request.grants:
            with contextlib.suppress(GrantError, VaultError):  # revoked: its next use tells
                if self._run.vault is not None:
                    found.append(self._run.vault.info(name))
        return found
