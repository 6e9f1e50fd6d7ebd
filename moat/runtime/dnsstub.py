"""The sandbox's only resolver: every name gets an address of its own in 127.64.0.0/10.

Nothing is ever forwarded, so a query cannot carry data out. A connection to such an address on port 80
or 443 is captured, and the table tells which name it was meant for. An address is never given to a
second name: a cached answer would otherwise send a request, with its credential, to the wrong host.

Also copied into containers: standard library only, nothing of `moat`, Python 3.7 or later.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Mapping

LIMIT = 16384  # names in one run; past it new names fail (SERVFAIL), old ones keep working
MAX_QUERY = 1232  # the EDNS size everybody uses; a query is a fraction of it

_BASE = (127 << 24) | (64 << 16)
_SLOTS = 1 << 22
_TTL = 60

_A, _OPT, _IN = 1, 41, 1
_NOERROR, _FORMERR, _SERVFAIL, _NXDOMAIN, _NOTIMP, _REFUSED = range(6)
_QR, _RD, _RA, _AA = 0x8000, 0x0100, 0x0080, 0x0400
_OPCODE = 0x7800

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\Z")


class FullError(Exception):
    """The table holds as many names as it may."""


class NameTable:
    """Names and their synthetic addresses, both ways. Not thread-safe.

    `fixed` are names with real addresses inside the sandbox (`moat-host`); they are answered, not
    captured. A name has the same address in every run unless two of one run collide.
    """

    def __init__(self, fixed: Mapping[str, str] | None = None, *, limit: int = LIMIT) -> None:
        self._fixed = dict(fixed or {})
        self._limit = limit
        self._addresses: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def address(self, name: str) -> str | None:
        """The IPv4 address of `name`, or None when it is no host name. Raises FullError."""
        name = name.lower().rstrip(".")
        if name in self._fixed:
            return self._fixed[name]
        if name == "localhost" or name.endswith(".localhost"):  # RFC 6761
            return "127.0.0.1"
        if name not in self._addresses:
            if not is_host_name(name):
                return None
            if len(self._addresses) >= self._limit:
                raise FullError(name)
            address = self._free(name)
            self._addresses[name] = address
            self._names[address] = name
        return self._addresses[name]

    def name(self, address: str) -> str | None:
        """The name that was given `address`, or None."""
        return self._names.get(address)

    def _free(self, name: str) -> str:
        digest = hashlib.blake2s(name.encode(), digest_size=4).digest()
        slot = int.from_bytes(digest, "big") % _SLOTS
        while True:
            value = _BASE | slot
            address = ".".join(str(byte) for byte in struct.pack(">I", value))
            if address not in self._names:
                return address
            slot = (slot + 1) % _SLOTS


def is_host_name(name: str) -> bool:
    """Whether `name` (lower case, no final dot) can be a host: letters, digits, `-`, `_`; no IPv4 form."""
    labels = name.split(".")
    return len(name) <= 253 and all(_LABEL.match(label) for label in labels) and not labels[-1].isdigit()


class _BadQuestionError(Exception):
    pass


def _name(query: bytes, offset: int) -> tuple[bytes, int]:
    """Labels joined by dots, and where the name ends. Compression has no place in a question."""
    labels: list[bytes] = []
    total = 1
    while True:
        if offset >= len(query):
            raise _BadQuestionError
        length = query[offset]
        offset += 1
        if length == 0:
            return b".".join(labels), offset
        total += length + 1
        if length > 63 or total > 255 or offset + length > len(query):
            raise _BadQuestionError
        label = query[offset : offset + length]
        if b"." in label:  # legal on the wire, but it would read as two labels
            raise _BadQuestionError
        labels.append(label)
        offset += length


def _parse(query: bytes, counts: tuple[int, int, int, int]) -> tuple[bytes, int, int, int, bool]:
    """Name, type, class, end of the question, whether EDNS was used. Raises _BadQuestionError."""
    if counts[:3] != (1, 0, 0) or counts[3] > 1:
        raise _BadQuestionError
    name, end = _name(query, 12)
    if end + 4 > len(query):
        raise _BadQuestionError
    kind, group = struct.unpack_from(">HH", query, end)
    end += 4
    rest = query[end:]
    if counts[3] == 0:
        if rest:
            raise _BadQuestionError
        return name, kind, group, end, False
    # RFC 6891: the OPT pseudo-record has the root name and follows the question.
    if len(rest) < 11 or rest[0] != 0 or struct.unpack_from(">H", rest, 1)[0] != _OPT:
        raise _BadQuestionError
    if len(rest) != 11 + int(struct.unpack_from(">H", rest, 9)[0]):
        raise _BadQuestionError
    return name, kind, group, end, True


def _reply(
    query: bytes, code: int, question: bytes = b"", record: bytes = b"", *, edns: bool = False
) -> bytes:
    identifier, flags = struct.unpack_from(">HH", query)
    flags = _QR | _AA | _RA | (flags & (_OPCODE | _RD)) | code
    options = b"\0" + struct.pack(">HHIH", _OPT, MAX_QUERY, 0, 0) if edns else b""
    counts = (1 if question else 0, 1 if record else 0, 0, 1 if edns else 0)
    return struct.pack(">HHHHHH", identifier, flags, *counts) + question + record + options


def answer(query: bytes, names: NameTable) -> bytes | None:
    """The reply to one UDP query, or None where silence is right (too short or too long, a reply).

    A gets the name's synthetic address, every other type an empty NOERROR answer, something that is
    no host name NXDOMAIN, a malformed query FORMERR.
    """
    if len(query) < 12 or len(query) > MAX_QUERY:
        return None
    header = struct.unpack_from(">HHHHHH", query)
    if header[1] & _QR:
        return None  # answering answers is how two stubs talk forever
    if header[1] & _OPCODE:
        return _reply(query, _NOTIMP)
    try:
        name, kind, group, end, edns = _parse(query, header[2:])
    except _BadQuestionError:
        return _reply(query, _FORMERR)
    question = query[12:end]
    if group != _IN:
        return _reply(query, _REFUSED, question, edns=edns)
    if kind != _A:
        return _reply(query, _NOERROR, question, edns=edns)
    try:
        address = names.address(name.decode("ascii", "replace"))
    except FullError:
        return _reply(query, _SERVFAIL, question, edns=edns)
    if address is None:
        return _reply(query, _NXDOMAIN, question, edns=edns)
    packed = bytes(int(part) for part in address.split("."))
    record = b"\xc0\x0c" + struct.pack(">HHIH", _A, _IN, _TTL, 4) + packed
    return _reply(query, _NOERROR, question, record, edns=edns)
