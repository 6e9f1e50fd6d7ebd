"""Our `dataclass` beside the standard library's: whatever a program can see of a class is the same."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import sys
from collections.abc import Callable
from dataclasses import field
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from moat.dataclass import dataclass as ours

Make = Callable[..., Any]


def classes(dataclass: Make) -> SimpleNamespace:
    @dataclass(frozen=True, slots=True)
    class Empty:
        pass

    @dataclass(frozen=True, slots=True)
    class Plain:
        """Documented."""

        kind: ClassVar[str] = "plain"
        name: str
        size: int = 3
        tags: list[str] = field(default_factory=lambda: ["new"])
        secret: str = field(default="s3cret", repr=False)
        stamp: float = field(default=0.0, compare=False)

        @property
        def loud(self) -> str:
            return self.name.upper()

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Keywords(Plain):
        last: int = 9
        needed: int

    @dataclass(frozen=True, slots=True)
    class Checked:
        low: int
        high: int

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError("upside down")

    @dataclass(frozen=True, slots=True)
    class Own:
        number: int

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Own) and self.number % 2 == other.number % 2

        def __hash__(self) -> int:
            return self.number % 2

        def __repr__(self) -> str:
            return "own"

    @dataclass(frozen=True, slots=True, repr=False)
    class Silent:
        token: str

    @dataclass(slots=True)
    class Open:
        name: str
        tags: list[str] = field(default_factory=list)

    @dataclass(slots=True)
    class Hashed:
        name: str

        def __hash__(self) -> int:
            return 5

    return SimpleNamespace(
        Empty=Empty,
        Plain=Plain,
        Keywords=Keywords,
        Checked=Checked,
        Own=Own,
        Silent=Silent,
        Open=Open,
        Hashed=Hashed,
    )


def told(action: Callable[[], object]) -> object:
    """What an action gives, or how it fails."""
    try:
        return action()
    except (TypeError, AttributeError, ValueError) as error:
        return type(error).__name__, str(error)


def changed(it: Any, **values: object) -> Any:
    for name, value in values.items():
        setattr(it, name, value)
    return it


def names(text: object) -> str:
    return str(text).replace("_quick.<locals>.", "")


PROBES: dict[str, Callable[[SimpleNamespace], object]] = {
    "positional": lambda of: repr(of.Plain("a", 2, ["x"])),
    "defaults": lambda of: repr(of.Plain("a")),
    "named": lambda of: repr(of.Plain(size=1, name="b")),
    "a default of its own each": lambda of: of.Plain("a").tags is of.Plain("a").tags,
    "too few": lambda of: told(of.Plain),
    "too many": lambda of: told(lambda: of.Empty(1)),
    "unknown": lambda of: told(lambda: of.Plain("a", colour=1)),
    "keywords only": lambda of: repr(of.Keywords("a", needed=1)),
    "a keyword is missing": lambda of: told(lambda: of.Keywords("a")),
    "equal": lambda of: (of.Plain("a") == of.Plain("a"), of.Plain("a") == of.Plain("b"), of.Empty() == of.Empty()),
    "not compared": lambda of: of.Plain("a", stamp=1.0) == of.Plain("a", stamp=2.0),
    "another class": lambda of: of.Keywords("a", needed=1) == of.Plain("a"),
    "nan": lambda of: of.Own(1) == of.Own(3),
    "hash": lambda of: hash(of.Checked(1, 2)) == hash(of.Checked(1, 2)),
    "hash of what has none": lambda of: told(lambda: hash(of.Plain("a"))),
    "own methods": lambda of: (repr(of.Own(4)), hash(of.Own(4)), of.Own(2) == of.Own(4)),
    "no repr": lambda of: "hidden" in repr(of.Silent("hidden")),
    "checked": lambda of: told(lambda: of.Checked(2, 1)),
    "assigned": lambda of: told(lambda: setattr(of.Plain("a"), "name", "b")),
    "deleted": lambda of: told(lambda: delattr(of.Plain("a"), "name")),
    "slots": lambda of: (hasattr(of.Plain("a"), "__dict__"), of.Plain.__slots__, of.Keywords.__slots__),
    "replaced": lambda of: repr(dataclasses.replace(of.Plain("a"), size=7)),
    "as a dict": lambda of: dataclasses.asdict(of.Plain("a", 1)),
    "fields": lambda of: [(f.name, f.kw_only) for f in dataclasses.fields(of.Keywords)],
    "property": lambda of: of.Plain("a").loud,
    "documented": lambda of: of.Plain.__doc__,
    "copied": lambda of: copy.copy(of.Plain("a", 5)) == of.Plain("a", 5),
    "not frozen": lambda of: repr(changed(of.Open("a"), name="b", tags=["x"])),
    "not frozen, equal": lambda of: (of.Open("a") == of.Open("a"), of.Open("a") == of.Open("b")),
    "not frozen, hash": lambda of: (told(lambda: hash(of.Open("a"))), of.Open.__hash__),
    "not frozen, its own hash": lambda of: hash(of.Hashed("a")),
    "not frozen, deleted": lambda of: told(lambda: repr(delattr(of.Open("a"), "name"))),
    "not frozen, unknown": lambda of: told(lambda: setattr(of.Open("a"), "colour", 1)),
    "not frozen, copied": lambda of: copy.copy(of.Open("a", ["x"])) == of.Open("a", ["x"]),
    "matched": lambda of: of.Plain.__match_args__,
}  # fmt: skip


@pytest.mark.parametrize("probe", PROBES)
def test_it_is_as_the_standard_one(probe: str) -> None:
    expected, found = (PROBES[probe](classes(make)) for make in (dataclasses.dataclass, ours))
    assert names(found) == names(expected)


@ours(frozen=True, slots=True)
class Kept:
    name: str
    size: int = 1


def test_an_instance_survives_a_pickle() -> None:
    assert pickle.loads(pickle.dumps(Kept("a", 2))) == Kept("a", 2)


def test_what_has_no_slots_is_the_standard_one() -> None:
    @ours
    class Open:
        size: int = 1

    it = Open()
    it.colour = "red"
    assert vars(it) == {"size": 1, "colour": "red"}


def test_nothing_is_compiled_before_there_is_an_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    usual = exec

    def recorded(text: str, *spaces: Any) -> None:
        compiled.append("".join(text.split()))
        usual(text, *spaces)

    monkeypatch.setattr("builtins.exec", recorded)

    @ours(frozen=True, slots=True)
    class Never:
        size: int

    # From Python 3.13 on the standard one compiles its methods at once, also when they are none.
    assert compiled == ([] if sys.version_info < (3, 13) else ["def__create_fn__():return()"])
    assert dataclasses.fields(Never)[0].name == "size"
