"""The question before a run whose agent.yaml asks for what is the user's own: once for a workspace."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from moat.cli.output import reason, safe, say
from moat.cli.worktree import project_of
from moat.config import RunConfig
from moat.errors import MoatError, NotAllowedError, UsageError
from moat.paths import Home
from moat.runtime.demands import Demand, demands, lendable

_LABELS = {"grant": "grants", "port": "host ports", "mount": "mounts"}
_INDENT = 16
_WIDTH = 79


def confirm(
    home: Home, workspace: Path, settings: RunConfig, *, named: Iterable[str], accepted: bool = False
) -> tuple[Demand, ...]:
    """Return when the run may have what `settings` ask for. Raises UsageError when it may not.

    Returned are the grants among it that are not there: nobody was asked about them.
    named: grants that the command line asks for. accepted: the command line vouches for the file, which
    counts where nobody can be asked.
    """
    wanted = demands(settings, named)
    if not wanted:
        return ()
    from moat.runtime import confirmed

    unsaid = confirmed.unconfirmed(home, project_of(workspace), wanted)
    new = lendable(home, unsaid) if unsaid else ()
    missing = tuple(demand for demand in unsaid if demand not in new)
    if not new:
        return missing
    file = settings.path.name if settings.path else "agent.yaml"
    if not _can_be_asked():
        _unasked(home, file, new, accepted=accepted)
        return missing
    if not _agreed(file, new, first=len(unsaid) == len(wanted)):
        raise NotAllowedError(
            f"nothing was started: {file} asks for what you did not allow",
            hint=f"take it out of {file}, or answer y: the next run asks again",
        )
    lend(home, workspace, new)
    return missing


def lend(home: Home, workspace: Path, given: Sequence[Demand]) -> None:
    """Remember that the user lends `given` to the workspace, or tell that it cannot be remembered."""
    from moat.runtime import confirmed

    try:
        confirmed.confirm(home, project_of(workspace), given)
    except (OSError, MoatError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        say(f"warning: the next run asks again, the answer cannot be kept: {why}")


def _can_be_asked() -> bool:
    from moat.cli.menu import Console

    return Console(json=True).terminal


def _unasked(home: Home, file: str, new: Sequence[Demand], *, accepted: bool) -> None:
    from moat.config import load_user

    parts = (f"{_LABELS[kind]} {', '.join(names)}" for kind, names in _by_kind(new))
    what = f"{file} asks for what is yours, and nobody has confirmed it: {'; '.join(parts)}"
    if load_user(home).workspaces.unconfirmed == "refuse" and not accepted:
        raise UsageError(
            what,
            hint="review it; then run this once on a terminal and answer, or add --accept-config\n"
            "(workspaces.unconfirmed is refuse in ~/.moat/config.yaml)",
        )
    say(f"warning: {what}")


def _agreed(file: str, new: Sequence[Demand], *, first: bool) -> bool:
    import termios

    from moat.cli.menu import Console

    console = Console(json=True)
    console.print(f"{file} asks for {'what' if first else 'more that'} is yours:")
    for kind, names in _by_kind(new):
        for line in _rows(_LABELS[kind], names, apart=kind == "mount"):
            console.print(line)
    with contextlib.suppress(termios.error):
        termios.tcflush(0, termios.TCIFLUSH)  # what was typed before the question is no answer to it
    return console.confirm("Use them in this workspace?", default=True)


def _by_kind(new: Sequence[Demand]) -> Iterable[tuple[str, list[str]]]:
    for kind in _LABELS:
        if names := [safe(demand.title) for demand in new if demand.kind == kind]:
            yield kind, names


def _rows(label: str, names: Sequence[str], *, apart: bool) -> Iterable[str]:
    """The names beside their label; `apart`: one in a row, because they may hold commas."""
    import textwrap

    rows = names if apart else textwrap.wrap(", ".join(names), _WIDTH - _INDENT, break_on_hyphens=False)
    for number, row in enumerate(rows):
        yield f"{'' if number else f'  {label}':<{_INDENT}}{row}"
