"""The question before a run whose agent.yaml asks for what is the user's own: once for a workspace."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moat.cli.output import reason, safe, say
from moat.cli.pages import pages, ranges
from moat.cli.worktree import project_of
from moat.config import RunConfig
from moat.errors import MoatError, NotAllowedError, UsageError
from moat.paths import Home
from moat.runtime.demands import Demand, demands, lendable

if TYPE_CHECKING:
    from moat.cli.menu import Console

# In the order in which they are shown: what there can be most of comes last.
_NAMES = {
    "grant": "grant",
    "build": "image build",
    "image": "image",
    "packages": "package host",
    "marketplace": "marketplace",
    "mount": "mount",
    "port": "host port",
}
_APART = {"build", "marketplace", "mount"}  # in a row each, because they may hold commas
_MOST = 400  # names; nobody looks through more
_PORTS = 12  # numbers and ranges in the line for nobody


def confirm(
    home: Home,
    workspace: Path,
    settings: RunConfig,
    *,
    runtime: str | None,
    named: Iterable[str],
    marketplaces: Mapping[str, str],
    accepted: bool = False,
) -> tuple[Demand, ...]:
    """Return when the run may have what `settings` ask for. Raises UsageError when it may not.

    Returned are the grants among it that are not there: nobody was asked about them.
    runtime: of the run, where that is known. named: grants that the command line asks for. marketplaces: of
    the user's, and which file wants them. accepted: the command line vouches for the file, which counts
    where nobody can be asked.
    """
    wanted = demands(settings, named, runtime, marketplaces)
    if not wanted:
        return ()
    from moat.runtime import confirmed

    unsaid = confirmed.unconfirmed(home, project_of(workspace), wanted)
    new = lendable(home, unsaid) if unsaid else ()
    missing = tuple(demand for demand in unsaid if demand not in new)
    if not new:
        return missing
    file = _asking(settings, new, marketplaces)
    _bounded(file, new)
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


def _asking(settings: RunConfig, new: Sequence[Demand], marketplaces: Mapping[str, str]) -> str:
    own = settings.path.name if settings.path else "agent.yaml"
    files = {marketplaces[demand.name] if demand.kind == "marketplace" else own for demand in new}
    return files.pop() if len(files) == 1 else "the workspace"


def lend(home: Home, workspace: Path, given: Sequence[Demand]) -> None:
    """Remember that the user lends `given` to the workspace, or tell that it cannot be remembered."""
    from moat.runtime import confirmed

    try:
        confirmed.confirm(home, project_of(workspace), given)
    except (OSError, MoatError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        say(f"warning: the next run asks again, the answer cannot be kept: {why}")


def _bounded(file: str, new: Sequence[Demand]) -> None:
    """A list that is too long to be looked through is no question. Raises UsageError."""
    if sum(len(names) for _, names in _by_kind(new)) > _MOST:
        raise UsageError(
            f"{file} asks for more of what is yours than anybody can look through: {_counted(new)}",
            hint="take out what the workspace does not need, or lend it yourself with --grant and --mount",
        )


def _can_be_asked() -> bool:
    from moat.cli.menu import Console

    return Console(json=True).terminal


def _unasked(home: Home, file: str, new: Sequence[Demand], *, accepted: bool) -> None:
    from moat.config import load_user

    parts = (f"{_NAMES[kind]}s {', '.join(_few(file, kind, names))}" for kind, names in _by_kind(new))
    what = f"{file} asks for what is yours, and nobody has confirmed it: {'; '.join(parts)}"
    if load_user(home).workspaces.unconfirmed == "refuse" and not accepted:
        raise UsageError(
            what,
            hint="review it; then run this once on a terminal and answer, or add --accept-config\n"
            "(workspaces.unconfirmed is refuse in ~/.moat/config.yaml)",
        )
    say(f"warning: {what}")


def _few(file: str, kind: str, names: list[str]) -> list[str]:
    """Ports may be many; all else is named in full, or one of it could be hidden among the others."""
    if kind != "port" or len(names) <= _PORTS:
        return names
    return [*names[: _PORTS - 1], f"and {len(names) - _PORTS + 1} more in {file}"]


def _agreed(file: str, new: Sequence[Demand], *, first: bool) -> bool:
    """What does not fit on the screen is asked about page by page, and Enter does not say yes to it."""
    from moat.cli.menu import Console

    console = Console(json=True)
    title = f"{file} asks for {'what' if first else 'more that'} is yours:"
    sections = [(f"{_NAMES[kind]}s", names, kind in _APART) for kind, names in _by_kind(new)]
    columns, rows = _window(console.stream.fileno())
    shown = pages(title, sections, columns=columns, rows=rows)
    if len(shown) == 1:
        return _answer(console, shown[0], "Use them in this workspace?", default=True)
    *before, last = pages(f"{title} {_counted(new)}", sections, columns=columns, rows=rows)
    for number, page in enumerate(before, 1):
        if not _answer(console, page, f"Page {number} of {len(before) + 1}. Go on?", default=True):
            return False
    return _answer(console, last, "Use them all in this workspace?", default=False)


def _answer(console: Console, page: Sequence[str], question: str, *, default: bool) -> bool:
    import termios

    for line in page:
        console.print(line)
    with contextlib.suppress(termios.error):
        termios.tcflush(0, termios.TCIFLUSH)  # what was typed before the question is no answer to it
    return console.confirm(question, default=default)


def _window(fd: int) -> tuple[int, int]:
    """Columns and rows of the terminal; not of COLUMNS and LINES, which go stale."""
    try:
        columns, rows = os.get_terminal_size(fd)
    except OSError:
        columns = rows = 0
    return columns or 80, rows or 24


def _counted(new: Sequence[Demand]) -> str:
    """`1 grant, 60 mounts, 200 host ports`."""
    numbers = {name: sum(demand.kind == kind for demand in new) for kind, name in _NAMES.items()}
    return ", ".join(f"{n} {name}{'' if n == 1 else 's'}" for name, n in numbers.items() if n)


def _by_kind(new: Sequence[Demand]) -> Iterable[tuple[str, list[str]]]:
    for kind in _NAMES:
        names = [safe(demand.title) for demand in new if demand.kind == kind]
        if names:
            yield kind, ranges(map(int, names)) if kind == "port" else names
