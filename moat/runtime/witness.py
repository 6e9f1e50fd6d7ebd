"""The proxy's doings as entries of the journal: credentials that went out, exchanges that were refused.

The first use of a credential for a host is in the journal before the credential leaves; what follows is
counted and noted every half second, with the numbers that the exchanges have in `network.jsonl`; more
rarely as the journal grows. So the journal of a run with 100,000 requests stays small and still tells every
one of them, and a loop that runs for days does not fill it.
"""

from __future__ import annotations

from dataclasses import field
from urllib.parse import urlsplit

import anyio

from moat.dataclass import dataclass
from moat.errors import MoatError
from moat.grants import Credential, CredentialSource, grant_of
from moat.journal import Journal, remedy
from moat.proxy.events import Denial, ExchangeFinished

_TICK = 0.5  # seconds
_SYNC_EVERY = 2  # ticks between two syncs
_PACE = ((1 / 16, 0.5), (1 / 4, 5.0))  # below so much of the journal's limit, seconds between two notes
_SLOWEST = 60.0
_MAX_REFUSALS = 100  # kinds of refusals in one note; a sandbox can think of endless hosts


@dataclass(slots=True)
class _Tally:
    """Some exchanges of the same kind since the last note."""

    first: ExchangeFinished
    denial: Denial
    numbers: list[int] = field(default_factory=list)


def unrecorded(journal: Journal) -> Denial | None:
    """Why nothing may happen now: the journal cannot be written. None when it can."""
    failed = journal.failed
    if failed is None:
        return None
    return Denial(
        code="journal",
        reason=f"the journal cannot be written: {failed.strerror}",
        rule="nothing happens unrecorded",
        hint="start a new run; journal.max_size in ~/.moat/config.yaml is the limit"
        if journal.full
        else remedy(failed),
    )


class Witness:
    """What a Proxy asks for as `on_use` and `ready`, and tells as events."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._used: set[tuple[str, str]] = set()
        self._uses: dict[tuple[str, str], list[int]] = {}
        self._refusals: dict[tuple[str, ...], _Tally] = {}
        self.warned = 0  # exchanges that policy objects to and let through

    def ready(self) -> Denial | None:
        """Why no exchange may start now, or None."""
        return unrecorded(self._journal)

    def on_use(self, exchange: int, host: str, grants: tuple[str, ...]) -> Denial | None:
        """Credentials are about to go to `host`. Why they may not, or None."""
        for grant in grants:
            if (grant, host) in self._used:
                self._uses.setdefault((grant, host), []).append(exchange)
            elif self._journal.record("grant.used", grant=grant, host=host, exchanges=str(exchange), count=1):
                self._used.add((grant, host))
        return self.ready()

    def add(self, event: ExchangeFinished) -> None:
        """Take in an exchange that has ended."""
        if event.denial is not None:
            self._count("network.denied", event, event.denial)
        if event.warning is not None:
            self.warned += 1
            self._count("network.warned", event, event.warning)

    def _count(self, word: str, event: ExchangeFinished, denial: Denial) -> None:
        key = (word, _authority(event.url), event.method, denial.code, denial.rule)
        if key not in self._refusals and len(self._refusals) >= _MAX_REFUSALS:
            key = (word, "(many others)", "", denial.code, "")
        tally = self._refusals.setdefault(key, _Tally(event, denial))
        tally.numbers.append(event.id)

    def flush(self) -> None:
        """Note what was counted. While nothing can be written, counting goes on; at the limit it is lost."""
        self._journal.retry()
        if self._journal.failed and not self._journal.full:
            return
        self._journal.note_repeats()
        uses, self._uses = self._uses, {}
        for (grant, host), numbers in uses.items():
            self._journal.record(
                "grant.used", grant=grant, host=host, exchanges=ranges(numbers), count=len(numbers)
            )
        refusals, self._refusals = self._refusals, {}
        for (word, authority, *_), tally in refusals.items():
            self._note_refusals(word, authority, tally)

    async def run(self) -> None:
        """Flush again and again until cancelled, and sync now and then."""
        due = 0.0
        try:
            while True:
                for _ in range(_SYNC_EVERY):
                    await anyio.sleep(_TICK)
                    self._journal.retry()
                    if anyio.current_time() >= due:
                        self.flush()
                        due = anyio.current_time() + self._pause()
                await anyio.to_thread.run_sync(self._journal.sync)
        finally:
            self.flush()

    def _pause(self) -> float:
        """Seconds until the next note."""
        filled = self._journal.filled
        return next((seconds for part, seconds in _PACE if filled < part), _SLOWEST)

    def _note_refusals(self, word: str, authority: str, tally: _Tally) -> None:
        event, denial = tally.first, tally.denial
        self._journal.record(
            word,
            authority=authority,
            method=event.method,
            path=urlsplit(event.url).path,
            code=denial.code,
            rule=denial.rule,
            reason=denial.reason,
            exchanges=ranges(tally.numbers),
            count=len(tally.numbers),
        )


class WitnessedSource:
    """A CredentialSource that notes which credentials were read, each once, and each refusal."""

    def __init__(self, source: CredentialSource, journal: Journal) -> None:
        self._source = source
        self._journal = journal
        self._noted: dict[str, object] = {}

    async def credential(self, name: str) -> Credential:
        """Raises what the source raises; GrantError also when the reading cannot be noted."""
        grant = grant_of(name)
        try:
            found = await self._source.credential(name)
        except MoatError as error:
            self._note("secret.refused", grant, str(error), error=str(error))
            raise
        self._note("secret.resolved", grant, found.info, kind=found.info.kind)
        return found

    def _note(self, event: str, name: str, what: object, **data: str) -> None:
        if self._noted.get(name) != what:
            self._noted[name] = what
            self._journal.record(event, grant=name, **data)


def ranges(numbers: list[int]) -> str:
    """`3-7,9`: ascending, as short as it gets."""
    parts: list[str] = []
    start = last = None
    for number in [*sorted(set(numbers)), None]:
        if last is not None and number == last + 1:
            last = number
            continue
        if start is not None:
            parts.append(str(start) if start == last else f"{start}-{last}")
        start = last = number
    return ",".join(parts)


def _authority(url: str) -> str:
    """host:port of a URL, or what was refused before it became one."""
    try:
        parts = urlsplit(url)
        return parts.netloc or parts.path or url
    except ValueError:
        return url
