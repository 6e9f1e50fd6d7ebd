"""What is left out of snapshots: patterns in the syntax of .gitignore, and .gitignore files themselves.

Matching is linear in the path and in the pattern: a workspace must not be able to keep Moat busy with a
clever pattern. git itself is not asked, because its configuration in the workspace can start programs.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import stat
from itertools import islice

from moat.dataclass import dataclass

_MOST = 256 << 10  # bytes of a .gitignore that are read
_PATTERNS = 2000  # that hold in one place
_LONGEST = 1024  # characters of a line; what is longer is none: `fnmatch` looks for the end of every `[`


@dataclass(frozen=True, slots=True)
class Pattern:
    parts: tuple[re.Pattern[str] | None, ...]  # one for each component of the path; None is `**`
    negated: bool
    directories: bool  # matches nothing else

    def matches(self, names: list[str], *, directory: bool) -> bool:
        if self.directories and not directory:
            return False
        last = self.parts[-1]
        if last is not None and not last.match(names[-1]):
            return False  # most are done with here
        end = len(self.parts)
        reached = self._skip({0})
        for name in names:
            following: set[int] = set()
            for at in reached:
                if at == end:
                    continue
                part = self.parts[at]
                if part is None:
                    following |= {at, end} if at == end - 1 else {at}
                elif part.match(name):
                    following.add(at + 1)
            reached = self._skip(following)
        return end in reached

    def _skip(self, places: set[int]) -> set[int]:
        """`**` in front or in the middle also stands for nothing."""
        found = set(places)
        for at in sorted(places):
            while at < len(self.parts) - 1 and self.parts[at] is None:
                at += 1  # noqa: PLW2901 - walks on from each place
                found.add(at)
        return found


def parse(line: str) -> Pattern | None:
    """One line of a .gitignore; None for a comment or an empty line."""
    text = line.rstrip(" \t\r")
    if text.endswith("\\"):
        text += line[len(text) :][:1]  # an escaped space stays
    if not text or text.startswith("#"):
        return None
    negated = text.startswith("!")
    if negated or text.startswith(("\\!", "\\#")):
        text = text[1:]
    directories = text.endswith("/")
    text = text.rstrip("/") if directories else text
    words = [word for word in text.split("/") if word]
    if not words:
        return None
    if "/" not in text:
        words = ["**", *words]
    parts: list[re.Pattern[str] | None] = []
    for word in words:
        if word == "**" and parts and parts[-1] is None:
            continue
        parts.append(None if word == "**" else _component(word))
    return Pattern(tuple(parts), negated, directories)


def _component(word: str) -> re.Pattern[str]:
    """The expressions of fnmatch hold atomic groups: they do not backtrack out of hand."""
    escaped = re.sub(r"\\(.)", lambda found: f"[{found[1]}]" if found[1] in "*?[" else found[1], word)
    try:
        return re.compile(fnmatch.translate(escaped))
    except re.error:
        return re.compile(re.escape(word) + r"\Z")


@dataclass(frozen=True, slots=True)
class _Scope:
    depth: int  # components of the directory that the patterns are relative to
    patterns: tuple[Pattern, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """What is left out, as seen from one directory; `enter` gives the rules of one below it."""

    own: _Scope = _Scope(0, ())  # of the configuration: it counts before every file of the workspace
    scopes: tuple[_Scope, ...] = ()
    gitignore: bool = False  # obey the .gitignore files of the workspace

    @classmethod
    def of(cls, patterns: tuple[str, ...], *, gitignore: bool) -> Rules:
        found = tuple(p for p in map(parse, patterns) if p is not None)
        return cls(_Scope(0, found), gitignore=gitignore)

    @property
    def empty(self) -> bool:
        return not self.own.patterns and not self.gitignore

    def enter(self, directory: int, names: list[str]) -> Rules:
        """The rules inside the open `directory`, whose path has the components `names`."""
        if not self.gitignore:
            return self
        room = _PATTERNS - sum(len(scope.patterns) for scope in self.scopes)
        patterns = tuple(islice((p for p in map(parse, _lines(directory)) if p is not None), room))
        if not patterns:
            return self
        return Rules(self.own, (*self.scopes, _Scope(len(names), patterns)), gitignore=True)

    def skip(self, names: list[str], *, directory: bool) -> bool:
        """Whether the thing at `names` is left out. What is below a left out directory is never asked."""
        for scope in (self.own, *reversed(self.scopes)):
            inside = names[scope.depth :]
            for pattern in reversed(scope.patterns):
                if pattern.matches(inside, directory=directory):
                    return not pattern.negated
        return False


def _lines(directory: int) -> list[str]:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with contextlib.suppress(OSError):
        fd = os.open(".gitignore", flags, dir_fd=directory)
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                lines = os.read(fd, _MOST).decode("utf-8", "surrogateescape").split("\n")
                return [line for line in lines if len(line) <= _LONGEST]
        finally:
            os.close(fd)
    return []
