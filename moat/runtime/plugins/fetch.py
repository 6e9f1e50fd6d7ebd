"""What this machine fetched for plugins: requests outside of any policy, so they are on record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from moat.dataclass import dataclass
from moat.errors import StartError
from moat.journal import Journal, ledger
from moat.paths import Home


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """The fields of the event `plugin.fetched`."""

    what: str  # `marketplace tools`, `formatter@tools`
    source: str  # kind, place and ref, without credentials
    host: str  # that was asked; of several the last
    commit: str = ""  # empty: nothing came
    by: str  # who named it: `host`, `user`, `project`, `config`
    error: str = ""


def tell(journal: Journal, fetch: Fetch) -> None:
    journal.record("plugin.fetched", **asdict(fetch))


def note(home: Home, workspace: Path, fetches: Iterable[Fetch]) -> None:
    """Enter in the ledger what was fetched for no run. Raises StartError: it is done and not on record."""
    try:
        for fetch in fetches:
            ledger.note(home, "plugin.fetched", workspace=str(workspace), **asdict(fetch))
    except OSError as error:
        raise StartError(
            f"it is done, and could not be recorded: {error.strerror or error}",
            hint=f"free space in {home.journal}",
        ) from None
