"""What differs between two trees, or between a snapshot and the workspace as it is now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from moat.dataclass import dataclass
from moat.runtime.snapshots.entry import DIRECTORY, FILE, Entry, order

# What of .git is worth a look: it decides what git on the host starts, or is the user's own.
_TELLING = ("config", "config.worktree", "hooks", "info/attributes", "info/exclude")


class Change(NamedTuple):
    path: str
    before: Entry | None  # None: it was not there
    after: Entry | None  # None: it is gone

    @property
    def letter(self) -> str:
        """`A` added, `D` deleted, `M` modified, `T` another type."""
        if self.before is None:
            return "A"
        if self.after is None:
            return "D"
        return "M" if self.before.kind == self.after.kind else "T"

    @property
    def directory(self) -> bool:
        return (self.after or self.before or _NOTHING).kind == DIRECTORY

    @property
    def internal(self) -> bool:
        """Bookkeeping of git, which nobody reads."""
        parts = self.path.split("/")
        if ".git" not in parts:
            return False
        inside = "/".join(parts[parts.index(".git") + 1 :])
        if not inside:
            return self.directory
        telling = any(inside == name or inside.startswith(name + "/") for name in _TELLING)
        module = inside.startswith("modules/") and (parts[-1] == "config" or "hooks" in parts)
        return not telling and not module


_NOTHING = Entry("", FILE, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Counts:
    changed: int = 0
    added: int = 0
    removed: int = 0
    internal: int = 0  # of git's bookkeeping, not counted above

    def __bool__(self) -> bool:
        return bool(self.changed or self.added or self.removed)

    def __str__(self) -> str:
        words = [(self.changed, "changed"), (self.added, "added"), (self.removed, "removed")]
        told = [(number, word) for number, word in words if number]
        if not told:
            return "no files changed"
        number, word = told[0]
        first = f"{number} file{'' if number == 1 else 's'} {word}"
        return ", ".join([first, *(f"{number} {word}" for number, word in told[1:])])


def merge(before: Iterable[Entry], after: Iterable[Entry]) -> Iterator[tuple[Entry | None, Entry | None]]:
    """Both trees side by side, path by path. Holds one entry of each."""
    left, right = iter(before), iter(after)
    a, b = next(left, None), next(right, None)
    while a is not None or b is not None:
        if b is None or (a is not None and a.path != b.path and order(a.path) < order(b.path)):
            yield a, None
            a = next(left, None)
        elif a is None or a.path != b.path:
            yield None, b
            b = next(right, None)
        else:
            yield a, b
            a, b = next(left, None), next(right, None)


def alike(a: Entry, b: Entry) -> bool:
    """For a reader: times and owners do not count."""
    return (a.kind, a.mode, a.data, a.size) == (b.kind, b.mode, b.data, b.size)


def exactly(a: Entry, b: Entry) -> bool:
    """For a restore: everything counts."""
    return a[1:] == b[1:]


def compare(
    before: Iterable[Entry], after: Iterable[Entry], same: Callable[[Entry, Entry], bool] = alike
) -> Iterator[Change]:
    """Every path that differs, in walking order. What was not kept on either side is passed over."""
    for a, b in merge(before, after):
        entry = a or b
        if entry is None or (a and not a.kept) or (b and not b.kept):
            continue
        if a is None or b is None or not same(a, b):
            yield Change(entry.path, a, b)


def for_people(changes: Iterable[Change]) -> Iterator[Change]:
    """Without directories that only come and go with what is in them."""
    waiting: Change | None = None
    for change in changes:
        if waiting is not None and not change.path.startswith(waiting.path + "/"):
            yield waiting
        waiting = None
        if not change.directory:
            yield change
        elif change.letter in {"A", "D"}:
            waiting = change
        else:
            yield change
    if waiting is not None:
        yield waiting


def count(changes: Iterable[Change]) -> Counts:
    numbers = {"A": 0, "D": 0, "M": 0, "T": 0}
    internal = 0
    for change in changes:
        if change.internal:
            internal += 1
        else:
            numbers[change.letter] += 1
    return Counts(numbers["M"] + numbers["T"], numbers["A"], numbers["D"], internal)


def below(paths: tuple[str, ...]) -> Callable[[str], bool]:
    """Whether a path is one of `paths` or lies in one. No paths: all."""
    if not paths or "" in paths:
        return lambda _path: True
    exact, inside = frozenset(paths), tuple(path + "/" for path in paths)
    return lambda path: path in exact or path.startswith(inside)
