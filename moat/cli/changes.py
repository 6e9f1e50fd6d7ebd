"""Changes of files for the reader. Names and contents are the agent's: nothing may draw on a terminal."""

from __future__ import annotations

import base64
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from moat.cli.output import Progress, emit
from moat.runtime.snapshots.diff import Change, count
from moat.runtime.snapshots.patch import Kept, Now, Patch, patch
from moat.runtime.snapshots.take import Tell

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def safe(text: str) -> str:
    """Printable in any case; what is not is escaped."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # a byte that is not UTF-8
        return f"\\x{number - 0xDC00:02x}"
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


def path_json(path: str) -> dict[str, str]:
    """A path for JSON; with its bytes when they are no UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        data = os.fsencode(path)
        return {"path": data.decode("utf-8", "replace"), "path_base64": base64.b64encode(data).decode()}
    return {"path": path}


def size_text(size: int) -> str:
    value, unit = float(size), _UNITS[0]
    for unit in _UNITS:  # noqa: B007 - the last one counts
        if value < 1024:
            break
        value /= 1024
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"


def change_json(change: Change) -> dict[str, Any]:
    before, after = change.before, change.after
    value: dict[str, Any] = {**path_json(change.path), "change": change.letter, "directory": change.directory}
    for name, entry in (("before", before), ("after", after)):
        if entry is not None:
            value[name] = {"mode": f"{entry.mode:04o}", "size": entry.size}
    return value


def line(change: Change) -> str:
    """`M src/app.py (mode 0644 → 0755)`."""
    name = safe(change.path) + ("/" if change.directory else "")
    before, after = change.before, change.after
    mode = ""
    if before is not None and after is not None and before.mode != after.mode:
        mode = f" (mode {before.mode:04o} → {after.mode:04o})"
    return f"{change.letter} {name}{mode}"


class Sides:
    """Where the contents of both sides of a change come from."""

    def __init__(self, before: Kept | Now, after: Kept | Now) -> None:
        self.before = before
        self.after = after

    def patch(self, change: Change) -> Patch:
        return patch(change, self.before, self.after)


def print_changes(changes: list[Change], sides: Sides, *, stat: bool, patches: bool) -> None:
    """The list, or the patches; then the numbers."""
    if patches:
        for change in changes:
            print_patch(sides.patch(change))
        return
    for change in changes:
        emit(line(change) + (_stat(sides.patch(change)) if stat else ""))
    emit(str(count(changes)))


def _stat(found: Patch) -> str:
    return f"  ({found.note})" if found.note else f"  +{found.added} -{found.removed}"


def print_patch(found: Patch) -> None:
    """As it is into a pipe, so that `git apply` can read it; harmless on a terminal."""
    data = found.head + found.body
    if found.note:
        data += f"# {found.note}\n".encode()
    if sys.stdout.isatty():
        for text in patch_lines(found):
            emit(text)
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def patch_lines(found: Patch) -> list[str]:
    """A patch for a screen."""
    text = (found.head + found.body).decode("utf-8", "replace")
    lines = [safe(part.expandtabs(8)) for part in text.split("\n")]
    if lines and not lines[-1]:
        lines.pop()
    return [*lines, f"({found.note})"] if found.note else lines


def visible(changes: Iterable[Change], *, everything: bool) -> tuple[list[Change], int]:
    """What to show, and how many of git's own files are left out."""
    kept: list[Change] = []
    hidden = 0
    for change in changes:
        if change.internal and not everything:
            hidden += 1
        else:
            kept.append(change)
    return kept, hidden


def telling(progress: Progress, what: str) -> Tell:
    """Progress for what takes over a second."""
    began = last = time.monotonic()
    seen = 0

    def tell(entries: int, size: int) -> None:
        nonlocal last, seen
        seen = max(seen, entries)
        now = time.monotonic()
        if now - began > 1 and now - last > 0.1:
            last = now
            progress.show(f"{what}: {seen:,} files, {size_text(size)} read")

    return tell


def told(progress: Progress, what: str) -> Callable[[int, int], None]:
    """As `telling`, for something of known length."""
    began = time.monotonic()

    def tell(done: int, of: int) -> None:
        if time.monotonic() - began > 1:
            progress.show(f"{what}: {done:,} of {of:,}")

    return tell
