"""Whether an argument is what its type hint says; what is not is named, with what it can be.

For calls from programs, which no type checker may have seen: a word in another case than the one that is
meant would not be an error somewhere, but the other choice.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import signal
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from moat.errors import ArgumentError

Bytes = bytes | bytearray | memoryview
_SHOWN = 60  # characters of a value that is quoted


def check(name: str, value: object, kind: Any) -> None:
    """Raises ArgumentError unless `value` is of `kind`, a type hint; also for what is wrong inside of it.

    name: of the argument. Whole numbers are floats too; True is no number; a list will do for a tuple.
    Iterators are not looked into, nor are protocols; no value is quoted but of a choice between words.
    """
    if wrong := _wrong(name, value, kind):
        raise ArgumentError(wrong)


def check_fields(value: object) -> None:
    """`check` of every field of a dataclass, each under its own name."""
    kind: Any = type(value)
    for name, hint in _fields(kind).items():
        check(name, getattr(value, name), hint)


def check_range(name: str, value: float, least: float, most: float = float("inf")) -> None:
    """Raises ArgumentError unless `value` is a number from `least` to `most`."""
    if not least <= value <= most:
        bounds = f"from {least} to {most}" if most != float("inf") else f"at least {least}"
        raise ArgumentError(f"{name} must be {bounds}, not {value}")


def check_signal(number: object) -> None:
    """Raises ArgumentError unless `number` is one of a signal, which `signal.SIGTERM` and its like are."""
    if not isinstance(number, int) or not 1 <= number < signal.NSIG:
        raise ArgumentError(f"number must be a signal, from 1 to {signal.NSIG - 1}, not {number!r}"[:_SHOWN])


def listed(name: str, value: object) -> tuple[Any, ...]:
    """What an iterable holds. Raises ArgumentError, also for text, which is one of letters."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise ArgumentError(f"{name} must be a list, not {_type(value)}")
    return tuple(value)


def mapped(name: str, value: object) -> dict[Any, Any]:
    """What a mapping holds. Raises ArgumentError."""
    if not isinstance(value, Mapping):
        raise ArgumentError(f"{name} must be a mapping, not {_type(value)}")
    return dict(value)


def _wrong(name: str, value: object, kind: Any) -> str:
    """What is wrong with a value, or nothing."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in {types.UnionType, typing.Union}:
        return _none_of(name, value, parts)
    if origin is typing.Literal:
        fits = any(type(value) is type(word) and value == word for word in parts)
        return "" if fits else f"{name} must be {_said(kind)}, not {repr(value)[:_SHOWN]}"
    if not _fits(value, origin or kind) or (origin is tuple and _uneven(value, parts)):
        return f"{name} must be {_said(kind)}, not {_type(value)}"
    return next(filter(None, (_wrong(*item) for item in _inside(name, value, kind))), "")


def _none_of(name: str, value: object, kinds: tuple[Any, ...]) -> str:
    found = [_wrong(name, value, kind) for kind in kinds]
    if "" in found:
        return ""
    for kind, wrong in zip(kinds, found, strict=True):
        outer = typing.get_origin(kind) or kind
        if outer is not typing.Literal and _fits(value, outer):  # then it is wrong further inside
            return wrong
    return f"{name} must be {' or '.join(map(_said, kinds))}, not {_type(value)}"


def _uneven(value: Any, parts: tuple[Any, ...]) -> bool:
    return Ellipsis not in parts and len(value) != len(parts)


def _fits(value: object, outer: Any) -> bool:
    if outer is Any or getattr(outer, "_is_protocol", False):
        return True
    if outer is collections.abc.Callable:
        return callable(value)
    if outer in {tuple, frozenset, collections.abc.Sequence}:
        return isinstance(value, (tuple, list, *((set, frozenset) if outer is frozenset else ())))
    if outer in {int, float}:
        return isinstance(value, (int, outer)) and not isinstance(value, bool)
    return isinstance(value, outer)


def _inside(name: str, value: Any, kind: Any) -> Iterator[tuple[str, object, Any]]:
    """The parts of a value with their names and hints."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if hasattr(kind, "__dataclass_fields__"):
        for field, hint in _fields(kind).items():
            yield f"{name}.{field}", getattr(value, field), hint
    elif origin is tuple and Ellipsis not in parts:
        yield from ((f"{name}[{at}]", item, parts[at]) for at, item in enumerate(value))
    elif origin in {tuple, collections.abc.Sequence}:
        yield from ((f"{name}[{at}]", item, parts[0]) for at, item in enumerate(value))
    elif origin is frozenset:
        yield from ((f"an item of {name}", item, parts[0]) for item in value)
    elif origin is collections.abc.Mapping:
        for key, item in value.items():
            yield f"a key of {name}", key, parts[0]
            yield f"{name}[{key!r}]"[:_SHOWN], item, parts[1]


@functools.cache
def _fields(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _said(kind: Any) -> str:
    """A hint, as programs write it."""
    if kind is type(None):
        return "None"
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        *others, last = map(repr, parts)
        return f"{', '.join(others)} or {last}" if others else last
    if origin in {types.UnionType, typing.Union}:
        return " or ".join(map(_said, parts))
    if origin is collections.abc.Callable:
        return "callable"
    if origin is collections.abc.Mapping:
        return "a mapping"
    if origin in {frozenset, collections.abc.Sequence} or Ellipsis in parts:
        return f"a list of {_said(parts[0])}"
    inner = f"[{', '.join(map(_said, parts))}]" if parts else ""
    return f"{getattr(origin or kind, '__name__', kind)}{inner}"


def _type(value: object) -> str:
    return "None" if value is None else type(value).__name__
