"""Variables that say where programs and modules are looked for, without the places that an agent can write.

A relative entry of PATH (`node_modules/.bin`, an empty one) leads into whatever workspace the user stands in,
and an absolute one does while an environment of Python or Node in the workspace is active. Then the agent's
`git` would run on the host, or the module that a supervisor with the user's keys imports late.
"""

import os
import sys
from collections.abc import Iterable, Mapping

_PATH = "PATH"
_OTHERS = ("PYTHONPATH", "LD_LIBRARY_PATH")  # an empty entry is the current directory in these as well


def outside(environ: Mapping[str, str], *places: os.PathLike[str]) -> dict[str, str]:
    """The variables of `environ` whose value does not do, with one that does: nothing below `places`."""
    found, borders = {}, _borders(places)
    if _PATH in environ:
        given = environ[_PATH].split(os.pathsep)
        kept = [entry for entry in given if os.path.isabs(entry) and not _inside(entry, borders)]
        # Of an empty PATH the C library would make the current directory.
        found[_PATH] = os.pathsep.join(kept) or os.defpath
    for name in _OTHERS if places else ():
        if environ.get(name):
            entries = environ[name].split(os.pathsep)
            found[name] = os.pathsep.join(entry for entry in entries if not _inside(entry, borders))
    return {name: value for name, value in found.items() if value != environ[name]}


def lies_in(entry: str, places: Iterable[os.PathLike[str]]) -> bool:
    """Whether it is in one of `places`, or is a link on either side of the border."""
    return _inside(entry, _borders(places))


def below(path: str, places: Iterable[str]) -> bool:
    """Whether it is one of `places` or in one, by its name."""
    return any(_below(path, place) for place in places)


def _inside(entry: str, borders: Iterable[str]) -> bool:
    mine = _borders([entry])
    return any(_below(one, border) for one in mine for border in borders)


def _borders(places: Iterable[str | os.PathLike[str]]) -> set[str]:
    return {name(place) for place in places for name in (os.path.abspath, os.path.realpath)}


def _below(path: str, place: str) -> bool:
    return f"{path}/".startswith(f"{place.rstrip('/')}/")


def leave(*places: os.PathLike[str]) -> set[str]:
    """What this process starts from here on is not looked for in `places`. The variables that led there."""
    changed = outside(os.environ, *places)
    os.environ.update(changed)
    return set(changed)


def import_from_elsewhere(*places: os.PathLike[str]) -> None:
    """Nor does this process import from there, unless all of Python is there."""
    borders = _borders(places)
    sys.path[:] = [
        entry
        for entry in sys.path
        if not _inside(entry, borders) or _below(os.path.abspath(entry), sys.prefix)
    ]
