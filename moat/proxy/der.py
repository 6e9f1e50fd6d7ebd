"""DER, as far as our certificates need it: writing (X.690), and finding what one says of its issuer."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import NamedTuple

BOOLEAN, INTEGER, BITS, OCTETS, OID, UTF8, UTC_TIME, TIME = 1, 2, 3, 4, 6, 12, 23, 24
SEQUENCE, SET, VERSION, EXTENSIONS = 0x30, 0x31, 0xA0, 0xA3  # constructed
_GENERAL_FROM = 2050  # the year from which UTCTime is ambiguous


class Element(NamedTuple):
    whole: bytes
    content: bytes


def elements(der: bytes) -> Iterator[Element]:
    """The elements that stand in `der` one after the other; of what we or a library have written."""
    while der:
        start, size = 2, der[1]
        if size & 0x80:
            start += size & 0x7F
            size = int.from_bytes(der[2:start], "big")
        yield Element(der[: start + size], der[start : start + size])
        der = der[start + size :]


def tlv(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def integer(value: int) -> bytes:
    return tlv(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    return tlv(OID, *map(_base128, (40 * first + second, *rest)))


def _base128(number: int) -> bytes:
    digits = [number & 0x7F]
    while number := number >> 7:
        digits.append(0x80 | number & 0x7F)
    return bytes(reversed(digits))


def attribute(kind: str, value: str) -> bytes:
    return tlv(SET, tlv(SEQUENCE, oid(kind), tlv(UTF8, value.encode())))


def time(when: dt.datetime) -> bytes:
    when = when.astimezone(dt.UTC)
    if when.year < _GENERAL_FROM:
        return tlv(UTC_TIME, when.strftime("%y%m%d%H%M%SZ").encode())
    return tlv(TIME, when.strftime("%Y%m%d%H%M%SZ").encode())


def moment(element: Element) -> dt.datetime:
    """What `time` has written."""
    digits = element.content if element.whole[0] == TIME else b"20" + element.content
    year, rest = int(digits[:4]), digits[4:14]  # `strptime` is 10 ms to import
    month, day, hour, minute, second = (int(rest[place : place + 2]) for place in range(0, 10, 2))
    return dt.datetime(year, month, day, hour, minute, second, tzinfo=dt.UTC)


def extension(kind: str, value: bytes, *, critical: bool) -> bytes:
    return tlv(SEQUENCE, oid(kind), tlv(BOOLEAN, b"\xff") if critical else b"", tlv(OCTETS, value))
