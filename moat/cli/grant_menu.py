"""`moat grant` without arguments: what there is, what is granted, what was found here, in one list.

Esc leads back through every question to the list, and out of it. Ctrl-C at any point leaves everything as it
was: nothing is stored before a wizard has come to its end.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence

from moat.cli.menu import SteppedBackError
from moat.cli.picker import Choice, pick
from moat.cli.walk import Walk
from moat.errors import MoatError
from moat.grants import CredentialInfo, Grant
from moat.paths import Home
from moat.vault import open_vault
from moat.vault.expiry import span
from moat.vault.found import hint
from moat.vault.providers import Entry, entries

Wizard = Callable[[Sequence[str]], int]


def run(wizard: Callable[[str], Wizard]) -> int:
    """Let the user choose until something was granted, or they step back."""
    console = Walk()
    status = None
    while status is None:
        rows = {row.name: row for row in entries()}
        granted = _granted()
        name = pick(console, "Grant", [_choice(row, granted.get(row.name, ())) for row in rows.values()])
        if name is None:
            return 0
        status = _grant(console, wizard(name), rows[name], granted.get(name, ()))
    return status


def _grant(console: Walk, wizard: Wizard, row: Entry, granted: Sequence[CredentialInfo]) -> int | None:
    """The wizard's status; None to go back to the list."""
    try:
        arguments = console.through(lambda: _arguments(console, row, granted))
        return None if arguments is None else wizard(arguments)
    except SteppedBackError:
        return None


def _granted() -> dict[str, tuple[CredentialInfo, ...]]:
    found: dict[str, tuple[CredentialInfo, ...]] = {}
    for info in open_vault(Home.from_environment()).list():
        name = Grant.parse(info.name).name
        found[name] = (*found.get(name, ()), info)
    return found


def _choice(row: Entry, granted: Sequence[CredentialInfo]) -> Choice:
    state = ", ".join(map(_state, granted))
    if not state and (where := hint(row)):
        state = f"found: {where}"
    return Choice(row.name, row.name, f"{row.summary} [{state}]" if state else row.summary)


def _state(info: CredentialInfo) -> str:
    """`granted`, or `npm.example.com granted`, with what becomes of it."""
    now = dt.datetime.now(dt.UTC)
    scope = Grant.parse(info.name).scope
    word = "granted"
    if info.expired(now):
        word = "expired"
    elif info.expires_at is not None:
        word = f"granted, expires in {span(info.expires_at - now)}"
    return f"{scope} {word}" if scope else word


def _arguments(console: Walk, row: Entry, granted: Sequence[CredentialInfo]) -> list[str] | None:
    """What the provider's wizard is to be called with; None to go back to the list."""
    scopes = [Grant.parse(info.name).scope for info in granted]
    if not row.scope:
        return (
            []
            if not scopes or console.confirm(f"{row.name} is granted. Replace it?", default=False)
            else None
        )
    own = row.hosts[0] if row.hosts else ""
    word = {"host": "Host", "name": "Name"}[row.scope]
    scope = console.line(f"{word}{f' (Enter: {own})' if own else ''}: ")
    if not scope:
        return [] if own else None
    try:
        Grant.parse(f"{row.name}:{scope}")
    except MoatError as error:
        console.print(f"That does not work: {error}.")
        return None
    arguments = list(row.words(scope))
    if row.name in {"mcp", "oauth"} and (
        url := console.line("URL of the server (Enter: as agent.yaml says): ")
    ):
        arguments += ["--url", url]
    return arguments
