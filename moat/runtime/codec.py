"""Frozen dataclasses to JSON and back, by their type hints: what a request is on its way to a supervisor.

Knows what such values are made of: dataclasses, tuples, mappings with string keys, paths, bytes (base64),
enums, optional values and JSON's own. For JSON that a Moat process wrote: what does not fit is our mistake.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def encode(value: object) -> Any:
    """`value` as something that `json.dumps` takes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    return value


def decode(kind: type[T], value: Mapping[str, Any]) -> T:
    """The dataclass `kind` that `encode` made `value` of. Raises KeyError, TypeError, ValueError."""
    return typing.cast("T", _read(kind, value))


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _read(kind: Any, value: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin in {types.UnionType, typing.Union}:
        (inner,) = [item for item in typing.get_args(kind) if item is not type(None)]
        return None if value is None else _read(inner, value)
    if origin is tuple:
        inner, *rest = typing.get_args(kind)
        if rest == [Ellipsis]:
            return tuple(_read(inner, item) for item in value)
        return tuple(_read(item, part) for item, part in zip((inner, *rest), value, strict=True))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        inner = typing.get_args(kind)[1]
        return types.MappingProxyType({key: _read(inner, item) for key, item in value.items()})
    if dataclasses.is_dataclass(kind):
        hints = _hints(typing.cast("type", kind))
        return typing.cast("type", kind)(**{name: _read(hints[name], item) for name, item in value.items()})
    if kind is bytes:
        return base64.b64decode(value)
    if isinstance(kind, type) and issubclass(kind, (Path, Enum)):
        return kind(value)
    return value
