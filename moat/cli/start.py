"""From a request to a run on the user's terminal: what `moat run` and `moat claude` have in common."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
import shlex
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from moat import surroundings
from moat.chord import Chord
from moat.cli import terminal
from moat.cli.chord import chosen
from moat.cli.display import size
from moat.cli.output import Progress, emit, emit_json, fill_standard_streams, git_warning, say
from moat.cli.results import tell_results
from moat.errors import MissingGrantsError, StartError
from moat.paths import Home
from moat.runtime import known, launch
from moat.runtime.forking import Fork
from moat.runtime.handle import RunHandle
from moat.runtime.records import read
from moat.runtime.request import RunRequest
from moat.runtime.size import Size
from moat.runtime.variables import protected

if TYPE_CHECKING:
    from moat.runtime.demands import Demand


def start(
    request: RunRequest,
    *,
    detach: bool = False,
    json: bool = False,
    home: Home | None = None,
    ahead: Fork | None = None,
    lent_when_granted: tuple[Demand, ...] = (),
) -> int:
    """Start `request` and stay with it until it ends or the user detaches; returns the exit status.

    Grants are checked first: all that is missing is told at once, and can be granted here and now;
    `lent_when_granted` is lent to the workspace then. With `detach` the run id is printed
    instead (`json`: as an object). Raises what `launch.start` raises.
    """
    place = home or Home.from_environment()
    fill_standard_streams()
    for name in protected(request.env):
        say(f"warning: env {name} is ignored: it would lead around Moat's proxy or certificates")
    if request.network.unreadable == "pass":
        say("warning: network.unreadable is pass: what cannot be searched for credentials gets through")
    chord = chosen(place)
    _tell_of_git(request, place)
    handoff = _handoff(request, place, lent_when_granted)
    request = dataclasses.replace(request, hold=not detach)
    progress = Progress()
    try:
        handle = launch.start(request, home=place, handoff=handoff, progress=progress.show, ahead=ahead)
    finally:
        progress.clear()
    surroundings.import_from_elsewhere(request.workspace)
    with _stopped_when_interrupted(handle, place):
        if detach:
            _tell_where(handle, place, json=json)
            return 0
        if _is_terminal(2):
            _tell_endpoints(handle, place)
        status = _attach(handle, place, chord)
    kept = request.snapshots
    tell_results(place, handle.id, compare=kept.pre_run and not kept.disabled)
    return status


@contextlib.contextmanager
def _stopped_when_interrupted(handle: RunHandle, home: Home) -> Iterator[None]:
    """Ctrl-C before the run gets all keys and signals: it must not go on where nobody sees it."""
    try:
        yield
    except KeyboardInterrupt:
        from moat.cli.stop import stop

        record = read(home, handle.id)
        if record and not record.state.ended:
            stop(home, record)
        raise


def _tell_where(handle: RunHandle, home: Home, *, json: bool) -> None:
    """A run in the background, and how to get at it."""
    if json:
        emit_json({"id": handle.id, "name": handle.name})
        return
    emit(handle.id)
    say(f"{handle.name} runs in the background")
    _tell_endpoints(handle, home)
    for verb in ("attach", "logs -f", "stop"):
        say(f"  moat {verb} {handle.name}")


def _tell_endpoints(handle: RunHandle, home: Home) -> None:
    record = read(home, handle.id)
    for name, url in (record.endpoints if record else {}).items():
        say(f"  {name}: {url}")


def _tell_of_git(request: RunRequest, home: Home) -> None:
    """What the last run here left for git on this machine to obey."""
    from moat.runtime.git.left import left_by

    left = left_by(home, request.workspace, known.all_runs(home))
    if left:
        for line in git_warning(*left):
            say(line)


def _attach(handle: RunHandle, home: Home, chord: Chord) -> int:
    try:
        return terminal.attach(handle, lead=True, chord=chord)
    except StartError:
        record = read(home, handle.id)
        if record is None or not record.error:
            raise
        raise StartError(record.error, hint=f"moat logs {handle.id}") from None


def wanted_size(*, interactive: bool, detach: bool) -> Size | None:
    """The size of the run's terminal; None for plain pipes.

    Interactive needs a terminal on stdin (programs refuse `the input device is not a TTY`), except in the
    background, where somebody will attach later.
    """
    return size() if interactive and (detach or _is_terminal(0)) else None


def wanted_stdin(*, tty: bool, detach: bool) -> bool:
    """Stdin is forwarded when it is no terminal: `echo x | moat run -- cat`."""
    return not tty and not detach and not _is_terminal(0)


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def _handoff(request: RunRequest, home: Home, lent_when_granted: tuple[Demand, ...]) -> bytes:
    if not request.grants:
        return b""
    from moat.runtime.granted import check, unique
    from moat.vault import open_vault
    from moat.vault.expiry import SESSION, ending, told

    vault = open_vault(home, passphrase=passphrase())
    try:
        found = check(vault, request.grants, request.mcp)
    except MissingGrantsError as missing:
        if not _grant_now(missing):
            raise
        found = check(vault, request.grants, request.mcp)
        if lent_when_granted:
            from moat.cli.confirm import lend

            lend(home, request.workspace, lent_when_granted)
    now = dt.datetime.now(dt.UTC)
    for info in ending(found, now, SESSION):
        say(f"warning: {told(info, now)}")
    return vault.handoff(unique(request.grants))


def _grant_now(missing: MissingGrantsError) -> bool:
    """Offer to grant all that is missing, here and now. False without a terminal, or when declined."""
    from moat.cli import grant
    from moat.cli.menu import Console, SteppedBackError

    console = Console()
    if not console.terminal:
        return False
    console.print(str(missing))
    try:
        if not console.confirm("Grant now?", default=True):
            return False
        for command in missing.fixes:
            console.print(f"$ {command}")
            if grant.main(shlex.split(command)[2:]):
                return False
    except SteppedBackError:  # out of the question, or of the first one of a grant
        return False
    return True


def passphrase() -> Callable[[], str] | None:
    """What asks for the passphrase of sealed credentials; None: there is nobody to ask."""
    from moat.cli.menu import AskPassphrase

    return AskPassphrase.where_possible()
