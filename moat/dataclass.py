"""`dataclass` of the standard library, whose classes with slots are made without compiling them.

The standard one compiles six methods for each class while it is imported: for the 140 classes of a run two
fifths of all imports, which are most of what `moat run -- true` takes. Here `__init__` is compiled when the
first instance is made, and everything else is shared. What is not `slots=True`, or has more than `frozen`,
`kw_only` and `repr`, is the standard one's. `replace`, `fields`, `asdict` and `is_dataclass` of `dataclasses`
work with either.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(cls: type | None = None, /, **options: Any) -> Any:
        """As `dataclasses.dataclass`."""
        make = _quick if _is_plain(options) else dataclasses.dataclass
        return make(cls, **options) if cls else lambda given: make(given, **options)


__all__ = ["dataclass"]
_OPTIONS = {"frozen", "slots", "kw_only", "repr"}


def _is_plain(options: dict[str, Any]) -> bool:
    return bool(options.get("slots")) and options.keys() <= _OPTIONS


def _quick(
    given: type, *, slots: bool, frozen: bool = False, kw_only: bool = False, repr: bool = True
) -> Any:
    given.__doc__ = given.__doc__ or given.__name__  # or the standard one derives it from the signature
    cls: Any = dataclasses.dataclass(given, init=False, repr=False, eq=False, slots=slots, kw_only=kw_only)
    every = dataclasses.fields(cls)
    key = _key(tuple(field.name for field in every if field.compare))
    shown = tuple(field.name for field in every if field.repr)

    def __init__(self: Any, *args: Any, **keywords: Any) -> None:
        cls.__init__ = init = _initializer(cls, every)
        init(self, *args, **keywords)

    def __repr__(self: Any) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def __eq__(self: Any, other: object) -> Any:
        return key(self) == key(other) if other.__class__ is self.__class__ else NotImplemented

    def __hash__(self: Any) -> int:
        return hash(key(self))

    cls.__init__ = __init__
    for method in (__eq__, *([__hash__] if frozen else ()), *([__repr__] if repr else ())):
        if cls.__dict__.get(method.__name__) is None:  # with an `__eq__` of its own, `__hash__` is None
            setattr(cls, method.__name__, method)
    if frozen:
        _freeze(cls, every)
    elif "__hash__" not in cls.__dict__:
        cls.__hash__ = None
    return cls


def _freeze(cls: Any, every: tuple[dataclasses.Field[Any], ...]) -> None:
    names = frozenset(field.name for field in every)

    def __setattr__(self: Any, name: str, value: object) -> None:
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        object.__setattr__(self, name, value)

    def __delattr__(self: Any, name: str) -> None:
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
        object.__delattr__(self, name)

    def __getstate__(self: Any) -> list[Any]:
        return [getattr(self, field.name) for field in every]

    def __setstate__(self: Any, state: list[Any]) -> None:
        for field, value in zip(every, state, strict=True):
            object.__setattr__(self, field.name, value)

    cls.__setattr__, cls.__delattr__ = __setattr__, __delattr__
    for method in (__getstate__, __setstate__):
        if method.__name__ not in cls.__dict__:
            setattr(cls, method.__name__, method)


def _key(names: tuple[str, ...]) -> Any:
    """A function from an instance to a tuple of the values of `names`."""
    if len(names) > 1:
        return operator.attrgetter(*names)
    return lambda instance: tuple(getattr(instance, name) for name in names)


def _initializer(cls: Any, every: tuple[dataclasses.Field[Any], ...]) -> Any:
    """`__init__`, which fills the slots directly: a frozen class refuses to be assigned to."""
    space: dict[str, Any] = {"missing": dataclasses.MISSING}
    positional: list[str] = ["self"]
    named: list[str] = []
    body: list[str] = []
    for field in every:
        name, value = field.name, field.name
        space[f"set_{name}"] = getattr(cls, name).__set__
        word = name
        if field.default is not dataclasses.MISSING:
            space[f"default_{name}"] = field.default
            word = f"{name}=default_{name}"
        elif field.default_factory is not dataclasses.MISSING:
            space[f"make_{name}"] = field.default_factory
            word, value = f"{name}=missing", f"make_{name}() if {name} is missing else {name}"
        (named if field.kw_only else positional).append(word)
        body.append(f"set_{name}(self, {value})")
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    parameters = ", ".join([*positional, *(["*", *named] if named else [])])
    lines = "\n  ".join(body or ["pass"])
    exec(f"def __init__({parameters}):\n  {lines}", space)  # noqa: S102 - names of fields, and nothing else
    space["__init__"].__qualname__ = f"{cls.__qualname__}.__init__"
    return space["__init__"]
