"""A JSON object in a file that may be missing, broken, huge, a pipe, or a stranger's."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

MAX_BYTES = 4_000_000


class UnreadableError(Exception):
    """The file is there and cannot be used; the reason in words, without anything of its content."""


def read_object(path: Path, *, inside: Path | None = None) -> dict[str, Any]:
    """The object in `path`; empty when there is no such file. Raises UnreadableError.

    `inside`: a directory that links must not lead out of, or its writer would choose a foreign file.
    """
    if inside is not None and not path.resolve().is_relative_to(inside.resolve()):
        raise UnreadableError("a link that leads out of the workspace is not followed")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not hang us
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UnreadableError(error.strerror or "cannot be read") from None
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UnreadableError("not a regular file")
        data = file.read(MAX_BYTES + 1)
    return parse_object(data)


def parse_object(data: bytes) -> dict[str, Any]:
    """`data` as a JSON object. Raises UnreadableError."""
    if len(data) > MAX_BYTES:
        raise UnreadableError(f"larger than {MAX_BYTES // 1_000_000} MB")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        where = f" in line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UnreadableError(f"not valid JSON{where}") from None
    if not isinstance(value, dict):
        raise UnreadableError("not a JSON object")
    return value
