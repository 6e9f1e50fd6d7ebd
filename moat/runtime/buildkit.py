"""What BuildKit says while it builds: `StatusResponse` of its control API, as the engine passes it on.

Only the fields that a person sees are read. The wire format is Protocol Buffers', which takes fewer
lines to read than a library takes to import.
"""

from __future__ import annotations

from collections.abc import Iterator

from moat.dataclass import dataclass

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Step:
    """A step that begins, or that has failed."""

    name: str  # `[4/6] RUN …`
    error: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """Some of a step's output."""

    text: str


class Trace:
    """Reads the messages of one build in order."""

    def __init__(self) -> None:
        self._begun: set[bytes] = set()

    def read(self, message: bytes) -> Iterator[Step | Text]:
        """Raises ValueError for what is no such message."""
        for number, value in _fields(message):
            if number == 1 and isinstance(value, bytes):
                yield from self._vertex(dict(_fields(value)))
            elif number == 3 and isinstance(value, bytes):
                text = dict(_fields(value)).get(4)
                if isinstance(text, bytes):
                    yield Text(text.decode("utf-8", "replace"))

    def _vertex(self, fields: dict[int, int | bytes]) -> Iterator[Step]:
        digest, name, error = (
            _bytes(fields, 1),
            _bytes(fields, 3).decode("utf-8", "replace"),
            _bytes(fields, 7),
        )
        if 5 in fields and digest not in self._begun:
            self._begun.add(digest)
            yield Step(name)
        if error:
            yield Step(name, error.decode("utf-8", "replace"))


def _bytes(fields: dict[int, int | bytes], number: int) -> bytes:
    value = fields.get(number, b"")
    return value if isinstance(value, bytes) else b""


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in {_FIXED64, _FIXED32}:
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + size > len(data):
            raise ValueError("cut off")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number without end")
