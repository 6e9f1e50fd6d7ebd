"""Whether an agent can change the very program that keeps it in.

Nothing that Moat does could be believed then, this warning included: whoever has written there already can
leave it out. It is for who installs Moat in a workspace, or starts it in one, without a thought.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

import moat
from moat import surroundings
from moat.cli.output import say
from moat.paths import Home
from moat.runtime import known


def warn(*places: os.PathLike[str]) -> None:
    """Tell of code of this program in `places`, where agents write."""
    if entry := changeable(*places):
        say(f"warning: Moat runs from {entry}, which an agent can change: install it outside of workspaces")


def changeable(*places: os.PathLike[str]) -> str:
    """Where code of this program lies in one of `places`, whose links are followed already, or nothing."""
    borders = [os.fspath(place) for place in places]
    return next((entry for entry in _code() if surroundings.below(os.path.realpath(entry), borders)), "")


def _code() -> Iterable[str]:
    """The package, the environment that it is installed in, and the Python that this was made of."""
    return moat.__path__[0], sys.prefix, sys.base_prefix


def warn_of_modules_in(directory: str) -> None:
    """Tell of `python -m moat` in a workspace: it has imported from there."""
    if surroundings.lies_in(directory, known.workspaces(Home.from_environment())):
        say("warning: `python -m moat` takes modules from this workspace, an agent's too: use `moat`")
