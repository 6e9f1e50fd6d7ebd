"""Append-only JSON-lines files: written in batches off the hot path, read while they grow.

`LineWriter` never blocks its caller on the disk and never loses an error: once a write failed, `failed`
holds the reason and the owner must fail closed (DESIGN, invariant 8).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class LineWriter:
    """Collects records and appends them as one write per `flush()`. File mode 0600."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._pending: list[bytes] = []
        self._hash = hashlib.sha256()
        self._size = 0
        self._held = 0  # bytes that are pending
        self._begin = os.fstat(self._fd).st_size
        self.failed: OSError | None = None

    def append(self, record: Mapping[str, Any]) -> None:
        line = _encoded(record)
        self._held += len(line) + 1
        self._pending.append(line)

    @property
    def size(self) -> int:
        """Bytes of the file once everything is written."""
        return self._size + self._held

    @property
    def pending(self) -> int:
        return len(self._pending)

    @property
    def written(self) -> tuple[int, str]:
        """How many bytes were written, and their SHA-256."""
        return self._size, self._hash.hexdigest()

    def flush(self) -> None:
        """Write what is pending, all or nothing; what failed is kept and told in `failed`."""
        if not self._pending:
            return
        data = b"\n".join([*self._pending, b""])
        try:
            self._write(memoryview(data))
        except OSError as error:
            self.failed = error
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._begin + self._size)
            return
        self._hash.update(data)
        self._size += len(data)
        self._pending.clear()
        self._held = 0
        self.failed = None

    def _write(self, data: memoryview) -> None:
        while data:
            data = data[os.write(self._fd, data) :]

    def close(self) -> None:
        self.flush()
        os.close(self._fd)


def _encoded(record: Mapping[str, Any]) -> bytes:
    import orjson  # thirty times as fast as json, and of no use to whoever only reads

    try:
        return orjson.dumps(record)
    except TypeError:  # what only Python has: half a surrogate pair, an integer beyond 64 bits
        return json.dumps(record, separators=(",", ":")).encode()


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, oldest first. Missing file: none. Torn or foreign lines are skipped."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            record = parse_line(line)
            if record is not None:
                yield record


def parse_line(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
