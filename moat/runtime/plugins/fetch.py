"""What this machine fetched for a run's plugins: requests outside of its policy, so they are on record."""

from __future__ import annotations

from dataclasses import dataclass

from moat.journal import Journal


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    what: str  # `marketplace tools`, `formatter@tools`
    source: str  # kind, place and ref, without credentials
    host: str  # that was asked; of several the last
    commit: str = ""  # empty: nothing came
    by: str  # who named it: `host`, `user`, `project`, `config`
    error: str = ""


def tell(journal: Journal, fetch: Fetch) -> None:
    journal.record(
        "plugin.fetched",
        what=fetch.what,
        source=fetch.source,
        host=fetch.host,
        commit=fetch.commit,
        by=fetch.by,
        error=fetch.error,
    )
