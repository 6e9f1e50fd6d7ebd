"""The format of one entry: a line of JSON whose bytes on the disk are the bytes that are hashed and signed.

    {"seq":2,"at":"2026-11-26T08:20:40.123456Z","run":"run_…","event":"grant.used","data":{…},"prev":"…","sig":"…"}

Members in this order, without blanks; inside `data` keys are sorted. `prev` is the SHA-256 of the whole
line before (without its line feed), `sig` the Ed25519 signature over everything before `,"sig"`. Nobody
ever has to serialise an entry again in order to check it. Nothing here reads a clock.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from moat.dataclass import dataclass

FIRST = ""  # `prev` of the first entry
SIGNED_AS = b"moat journal entry 1\n"  # what is signed begins with it: a signature fits one purpose
MAX_LINE = 16_384  # bytes; what is longer is no entry
_MAX_TEXT = 1_000  # characters of one string
_MAX_ITEMS = 200  # of one list or mapping
_MAX_DEPTH = 6
_MAX_SAFE = 2**53 - 1  # beyond it other readers of JSON round
_MEMBERS = ["seq", "at", "run", "event", "data", "prev", "sig"]
_SIG = b',"sig":"'
_SIG_DIGITS = 128
_TAIL = len(_SIG) + _SIG_DIGITS + len(b'"}')

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


class NotAnEntryError(Exception):
    """The bytes are no entry; the text says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a journal."""

    seq: int  # from 1
    at: str  # RFC 3339, UTC; whatever the clock said
    run: str  # empty in the ledger
    event: str
    data: Mapping[str, Any]
    prev: str  # hex
    signature: bytes
    line: bytes  # as it is on the disk, without the line feed

    @property
    def signed(self) -> bytes:
        """The message of the signature."""
        return SIGNED_AS + self.line[:-_TAIL]


def compose(
    *,
    seq: int,
    at: float,
    run: str,
    event: str,
    data: Mapping[str, Any],
    prev: str,
    sign: Callable[[bytes], bytes],
) -> bytes:
    """The line of an entry. `data` may hold anything: it is made plain first, and never fails."""
    plain_data = plain(data)
    stamp = dt.datetime.fromtimestamp(at, dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    members = {"seq": seq, "at": stamp, "run": run, "event": event, "data": plain_data, "prev": prev}
    body = _body(members)
    if len(body) + _TAIL > MAX_LINE:
        body = _body(members | {"data": {"too_long": len(body), "fields": sorted(plain_data)[:20]}})
    return body + _SIG + sign(SIGNED_AS + body).hex().encode() + b'"}'


def _body(members: Mapping[str, Any]) -> bytes:
    # Half a surrogate pair (an undecodable file name) has no UTF-8: it is escaped, as JSON can.
    return _encode(members)[:-1].encode("utf-8", "backslashreplace")


def plain(value: object, depth: int = 0) -> Any:
    """`value` in strings, whole numbers, booleans, null, lists and mappings with sorted keys; cut to size."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) <= _MAX_SAFE else str(value)
    if isinstance(value, str):
        return _cut(str(value))
    if depth >= _MAX_DEPTH:
        return "…"
    if isinstance(value, Mapping):
        pairs = {_cut(str(key)): item for key, item in list(value.items())[:_MAX_ITEMS]}
        return {key: plain(pairs[key], depth + 1) for key in sorted(pairs)}
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1) for item in value[:_MAX_ITEMS]]
    if isinstance(value, set | frozenset):
        return sorted(_cut(str(item)) for item in value)[:_MAX_ITEMS]
    if isinstance(value, bytes):
        return _cut(value.hex())
    return _cut(str(value))  # a float too: one decimal text, so that there is one form


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"


def parse(line: bytes) -> Entry:
    """The entry in a line, its signature not yet checked. Raises NotAnEntryError."""
    if len(line) > MAX_LINE or line[-_TAIL : -_TAIL + len(_SIG)] != _SIG:
        raise NotAnEntryError("it is not an entry")
    try:
        found = json.loads(line, object_pairs_hook=_unique, parse_constant=_no_constant)
        signature = bytes.fromhex(found["sig"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise NotAnEntryError(f"it is not an entry: {error}") from None
    if list(found) != _MEMBERS or signature.hex() != found["sig"]:  # upper case would be another line
        raise NotAnEntryError("its members are not those of an entry")
    seq, data = found["seq"], found["data"]
    texts = [found[name] for name in ("at", "run", "event", "prev")]
    if not isinstance(seq, int) or not isinstance(data, dict) or not all(isinstance(t, str) for t in texts):
        raise NotAnEntryError("a member is of the wrong kind")
    at, run, event, prev = texts
    return Entry(seq, at, run, event, data, prev, signature, line)


def entries(path: Path) -> Iterator[Entry]:
    """The entries of a file, unverified; lines that are none are skipped. Missing file: none."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    for line in data.split(b"\n")[:-1]:
        try:
            yield parse(line)
        except NotAnEntryError:
            continue


def digest(line: bytes) -> str:
    """What the next entry names as `prev`."""
    return hashlib.sha256(line).hexdigest()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member comes twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(name)
