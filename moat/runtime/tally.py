"""What the network trace of a run adds up to, read on from where the last look ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from moat.journal import parse_line

_PIECE = 1 << 20
_HOSTS = 1000  # told apart: an agent can make up names without end
OTHERS = "others"
_KEPT = 50  # of the newest denials


@dataclass(slots=True)
class Sums:
    requests: int = 0
    denied: int = 0
    failed: int = 0  # no answer came
    up: int = 0  # bytes of bodies
    down: int = 0

    def add(self, exchange: Mapping[str, Any]) -> None:
        self.requests += 1
        self.denied += isinstance(exchange.get("denial"), Mapping)
        self.failed += bool(exchange.get("error"))
        self.up += _number(exchange.get("request_bytes"))
        self.down += _number(exchange.get("response_bytes"))

    def to_json(self) -> dict[str, int]:
        return dataclasses.asdict(self)


@dataclass(slots=True)
class Tally:
    """Of one run. What it holds came from a sandbox: nothing of it may be drawn as it is."""

    path: Path  # network.jsonl
    sums: Sums = field(default_factory=Sums)
    hosts: dict[str, Sums] = field(default_factory=dict)
    credentials: dict[str, int] = field(default_factory=dict)  # grant -> exchanges it was used in
    denials: list[Mapping[str, Any]] = field(default_factory=list)  # exchanges, the newest last
    dropped: int = 0  # exchanges that the trace only counts
    _offset: int = 0
    _rest: bytes = b""

    def update(self) -> None:
        """Take in what was written since. A trace that is not there adds nothing."""
        for line in self._lines():
            value = parse_line(line)
            if value is None:
                continue
            if "method" in value:
                self._add(value)
            self.dropped += _number(value.get("dropped"))

    def _lines(self) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                while data := file.read(_PIECE):
                    self._offset += len(data)
                    *lines, self._rest = (self._rest + data).split(b"\n")
                    yield from lines
        except FileNotFoundError:
            return

    def _add(self, exchange: Mapping[str, Any]) -> None:
        self.sums.add(exchange)
        host = host_of(exchange)
        if host not in self.hosts and len(self.hosts) >= _HOSTS:
            host = OTHERS
        self.hosts.setdefault(host, Sums()).add(exchange)
        for grant in exchange.get("grants") or ():
            self.credentials[str(grant)] = self.credentials.get(str(grant), 0) + 1
        if isinstance(exchange.get("denial"), Mapping):
            self.denials = [*self.denials[1 - _KEPT :], exchange]


def host_of(exchange: Mapping[str, Any]) -> str:
    try:
        return urlsplit(str(exchange.get("url"))).netloc or "?"
    except ValueError:
        return "?"


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def in_words(size: float) -> str:
    """`0 B`, `12.3 kB`, `4.5 MB`."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def summary(tally: Tally) -> str:
    """`12 requests, 1 denied, 3 with anthropic`; empty when there was none."""
    if not tally.sums.requests:
        return ""
    count = tally.sums.requests + tally.dropped
    parts = [f"{count:,} request{'' if count == 1 else 's'}"]
    if tally.sums.denied:
        parts.append(f"{tally.sums.denied:,} denied")
    parts += [f"{used:,} with {grant}" for grant, used in sorted(tally.credentials.items())]
    return ", ".join(parts)
