"""`network.jsonl`: one line per exchange, free of credentials.

Records are collected and written in batches, off the way of a request. When a write fails the journal
says so, and the proxy refuses further exchanges until it can be written again: what is not recorded does
not happen (DESIGN, invariant 8).

The file has a limit. What comes after it is counted and not written: a line `{"full":bytes}` stands where it
was reached, and `{"dropped":count}` at the end. Nothing is overwritten, so that no flood of requests can push
out what was there.
"""

from __future__ import annotations

import datetime as dt
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache, lru_cache
from itertools import compress, count
from operator import itemgetter
from typing import Any, overload

import anyio
from anyio.abc import TaskStatus

from moat.journal import LineWriter, remedy
from moat.proxy.events import Denial, ExchangeFinished

FLUSH_SECONDS = 0.1
LIMIT = 256 << 20  # bytes
_MAX_WAITING = 10_000  # records kept while nothing can be written
REDACTED = "[REDACTED]"
_NAME = itemgetter(0)
_KNOWN = 512  # names of fields that are remembered
_MEMORABLE = 4096  # bytes of a block of fields that is remembered
# Whoever sent these, their values are nobody's business: the sandbox may log in somewhere by itself.
_SECRET_NAMES = frozenset(
    b"authorization proxy-authorization authentication-info cookie set-cookie x-api-key api-key x-auth-token "
    b"x-access-token x-csrf-token x-amz-security-token x-goog-api-key private-token job-token".split()
)


class Shown(Sequence[tuple[str, str]]):
    """The fields of a block as they are recorded; taken apart when somebody looks at them first.

    `names` (lower case) are redacted besides the usual ones.
    """

    __slots__ = ("_block", "_fields", "_names")

    def __init__(self, block: bytes, names: frozenset[bytes] = frozenset()) -> None:
        self._block = block
        self._names = names
        self._fields: tuple[tuple[str, str], ...] | None = None

    @classmethod
    def again(cls, block: bytes, names: frozenset[bytes]) -> Shown:
        """The same for a block that is likely to have been seen: clients repeat themselves."""
        return _remembered(block, names) if len(block) <= _MEMORABLE else cls(block, names)

    @property
    def fields(self) -> tuple[tuple[str, str], ...]:
        if self._fields is None:
            self._fields = tuple(_taken_apart(self._block, self._names))
            self._block = b""
        return self._fields

    @overload
    def __getitem__(self, index: int) -> tuple[str, str]: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[tuple[str, str], ...]: ...

    def __getitem__(self, index: int | slice) -> tuple[str, str] | tuple[tuple[str, str], ...]:
        return self.fields[index]

    def __len__(self) -> int:
        return len(self.fields)

    def __eq__(self, other: object) -> bool:
        return self.fields == (other.fields if isinstance(other, Shown) else other)

    def __hash__(self) -> int:
        return hash(self.fields)

    def __repr__(self) -> str:
        return repr(self.fields)


_remembered = lru_cache(maxsize=64)(Shown)


@cache
def _find_fields() -> Callable[[str], list[tuple[str, str]]]:
    from moat.proxy.grammar import FIELD_TEXT  # its patterns are compiled when there is a request

    return FIELD_TEXT.findall


def _taken_apart(block: bytes, names: frozenset[bytes]) -> list[tuple[str, str]]:
    text = block.decode("latin-1")
    fields = _find_fields()(text)
    if " \r" in text or "\t\r" in text or text.endswith((" ", "\t")):
        fields = [(name, value.rstrip(" \t")) for name, value in fields]
    hidden = map(_hidden_among(names).__getitem__, map(_NAME, fields))
    for at in compress(count(), hidden):
        fields[at] = (fields[at][0], REDACTED)
    return fields


class _Hidden(dict[str, bool]):
    """Whether the value of a field is redacted, by its name as sent. Names are few, and asked for often."""

    def __init__(self, names: frozenset[bytes]) -> None:
        self._names = names | _SECRET_NAMES

    def __missing__(self, name: str) -> bool:
        key = name.encode("latin-1").lower()
        hidden = key in self._names or key.startswith(b"proxy-")
        if len(self) < _KNOWN:
            self[name] = hidden
        return hidden


_hidden_among = lru_cache(maxsize=64)(_Hidden)


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")


def to_record(event: ExchangeFinished) -> dict[str, Any]:
    """The JSON object of an event. Empty fields are left out; header lists keep order and repetition."""
    seconds, micros = divmod(round(event.started * 1e6), 1_000_000)
    record: dict[str, Any] = {
        "id": event.id,
        "ts": f"{_second(seconds)}.{micros // 1000:03}Z",
        "method": event.method,
        "url": event.url,
        "status": event.status,
        "duration_ms": round(event.duration * 1000, 1),
        "request_headers": _fields(event.request_headers),
        "response_headers": _fields(event.response_headers),
        "request_bytes": event.request_bytes,
        "response_bytes": event.response_bytes,
    }
    if event.messages != (0, 0):
        record["messages"] = event.messages
    if event.grants:
        record["grants"] = event.grants
    if event.denial is not None:
        record["denial"] = asdict(event.denial)
    if event.warning is not None:
        record["warning"] = asdict(event.warning)
    if event.error:
        record["error"] = event.error
    if event.protocol != "http/1.1":
        record["protocol"] = event.protocol
    return record


def _fields(shown: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
    return shown.fields if isinstance(shown, Shown) else shown


def from_record(record: Mapping[str, Any]) -> ExchangeFinished:
    """The event of a JSON object, for display. Raises ValueError (also for a missing field)."""
    try:
        denial, warning = record.get("denial"), record.get("warning")
        return ExchangeFinished(
            started=dt.datetime.fromisoformat(record["ts"]).timestamp(),
            duration=record["duration_ms"] / 1000,
            method=record["method"],
            url=record["url"],
            status=record["status"],
            request_headers=_pairs(record["request_headers"]),
            response_headers=_pairs(record["response_headers"]),
            request_bytes=record["request_bytes"],
            response_bytes=record["response_bytes"],
            messages=tuple(record.get("messages", (0, 0))),
            grants=tuple(record.get("grants", ())),
            denial=Denial(**denial) if denial else None,
            warning=Denial(**warning) if warning else None,
            error=record.get("error", ""),
            id=record.get("id", 0),
            protocol=record.get("protocol", "http/1.1"),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a record of an exchange: {error}") from error


def _pairs(fields: list[list[str]]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in fields)


class Trace:
    """Writes events to a LineWriter. `add` and `ready` are what a Proxy asks for."""

    def __init__(
        self, writer: LineWriter, *, limit: int = LIMIT, on_full: Callable[[], object] = lambda: None
    ) -> None:
        """limit: bytes. on_full: called once, when it is reached."""
        self._writer = writer
        self._limit = limit
        self._on_full = on_full
        self._full = False
        self._events: deque[ExchangeFinished] = deque()
        self.dropped = 0  # exchanges that are not in the file

    def add(self, event: ExchangeFinished) -> None:
        """Take an event in; it is on disk after the next flush."""
        self._events.append(event)

    def ready(self) -> Denial | None:
        """Why no exchange may start now, or None."""
        if self._writer.failed is None:
            return None
        return Denial(
            code="journal",
            reason=f"the network trace cannot be written: {self._writer.failed.strerror}",
            rule="nothing happens unrecorded",
            hint=remedy(self._writer.failed),
        )

    def flush(self) -> None:
        events = self._events
        while events:
            event = events.popleft()  # and with it what it was taken apart into
            if self._has_room():
                self._writer.append(to_record(event))
            else:
                self.dropped += 1
        self._writer.flush()

    def finish(self) -> None:
        """Write what is left, and how much is missing."""
        self.flush()
        if self.dropped:
            self._writer.append({"dropped": self.dropped})
            self._writer.flush()

    def _has_room(self) -> bool:
        if not self._full and self._writer.size >= self._limit:
            self._full = True
            self._writer.append({"full": self._limit})
            self._on_full()
        return not self._full and self._writer.pending < _MAX_WAITING

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Flush every FLUSH_SECONDS until cancelled, and once more then."""
        task_status.started()
        try:
            while True:
                await anyio.sleep(FLUSH_SECONDS)
                self.flush()
        finally:
            self.flush()
