"""The words of a command and of its environment: which of them Linux can hand over."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from moat.arguments import check, listed
from moat.errors import ArgumentError, UsageError

_LONGEST = 131_071  # bytes: MAX_ARG_STRLEN, without its NUL


def words(argv: object) -> tuple[str, ...]:
    """A command as a program gives it; a path is a word too. Raises ArgumentError."""
    found = listed("argv", argv)
    if not found:
        raise ArgumentError("argv must be a list with the command and its arguments, not an empty one")
    found = tuple(os.fspath(word) if isinstance(word, os.PathLike) else word for word in found)
    check("argv", found, tuple[str, ...])
    return found


def check_argv(argv: Iterable[str]) -> None:
    """Raises UsageError for a word that cannot be said: its rest would be taken for one of Moat's own."""
    for at, word in enumerate(argv):
        if not _sayable(word):
            raise UsageError("argv: the command and its arguments are text without NUL")
        _check_length(f"argv[{at}]", word)


def check_env(env: Mapping[str, str]) -> None:
    """Raises UsageError for variables that cannot be set."""
    for name, value in env.items():
        if not (_sayable(name) and _sayable(value)) or not name or "=" in name:
            raise UsageError(
                f"env: {name!r} cannot be set",
                hint="a name is text without `=`, a value is text, and neither holds NUL",
            )
        _check_length(f"env[{name!r}]", f"{name}={value}")


def _sayable(word: object) -> bool:
    """Whether it is text that can be written as bytes, and without NUL."""
    try:
        return isinstance(word, str) and b"\0" not in os.fsencode(word)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def _check_length(what: str, word: str) -> None:
    if (size := len(os.fsencode(word))) > _LONGEST:
        raise UsageError(
            f"{what} has {size} bytes, and Linux hands over {_LONGEST} at most",
            hint="hand it over in a file of the workspace, or on stdin",
        )
