"""Credentials that hosts do not take any more, or that cannot be had: told in a run and after it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from moat.errors import GrantError, VaultError
from moat.journal import Journal
from moat.journal.entry import Entry
from moat.proxy.events import ExchangeFinished

if TYPE_CHECKING:
    from moat.vault import Vault


class Rejections:
    """Looks at every exchange of a run for a 401 to a credential."""

    def __init__(self, vault: Vault | None, journal: Journal, tell: Callable[[str], None]) -> None:
        self._vault = vault
        self._journal = journal
        self._tell = tell
        self._told: set[str] = set()
        self.get_another: Callable[[str], bool] = lambda _grant: False  # whether somebody will

    def add(self, event: ExchangeFinished) -> None:
        """Take in an exchange that has ended."""
        if event.status != 401 or event.denial is not None:
            return
        for grant in event.grants:
            renewed = self.get_another(grant)
            if grant not in self._told:
                self._told.add(grant)
                self._note(grant, host_of(event.url), renewed=renewed)

    def _note(self, grant: str, host: str, *, renewed: bool) -> None:
        self._journal.record("grant.rejected", grant=grant, host=host)
        if not renewed:
            command = fix(self._vault, grant)
            self._tell(f"warning: {host} does not take the credential {grant} (401): `{command}`")


def fix(vault: Vault | None, grant: str) -> str:
    """The command that makes a grant anew, as exactly as it can be told."""
    from moat.vault.providers import again, command  # a run in which nothing is refused needs none

    if vault is not None:
        with contextlib.suppress(GrantError, VaultError):
            return again(vault.info(grant))
    return command(grant)


def refused(records: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str, int], int]:
    """(grant, host, 401 or 403) -> how many of the exchanges in `network.jsonl` ended so."""
    found: dict[tuple[str, str, int], int] = {}
    for record in records:
        status = record.get("status")
        if status not in {401, 403} or "denial" in record:
            continue
        for grant in record.get("grants", ()):
            key = (str(grant), host_of(str(record.get("url", ""))), int(status))
            found[key] = found.get(key, 0) + 1
    return found


def withheld(entries: Iterable[Entry]) -> dict[str, str]:
    """Grant -> why the vault did not give its credential at last, of a journal."""
    found: dict[str, str] = {}
    for entry in entries:
        if entry.event == "secret.refused":
            found[str(entry.data.get("grant"))] = str(entry.data.get("error"))
        elif entry.event == "secret.resolved":
            found.pop(str(entry.data.get("grant")), None)
    return found


def host_of(url: str) -> str:
    return urlsplit(url).hostname or url
