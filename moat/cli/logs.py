"""`moat logs [run]`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from moat.cli.parser import Parser
from moat.errors import RunNotFoundError
from moat.paths import Home
from moat.runtime import known, records
from moat.runtime.records import RunRecord
from moat.runtime.screen import text_only

_POLL = 0.1  # seconds between two looks at a growing file
_PIECE = 65536


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="moat logs",
        description="Print what a run printed. Of a run with a terminal the text is shown, without the "
        "control sequences that would draw on this one.",
    )
    parser.add_argument("run", nargs="?", help="name or id (default: the newest)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the run has ended")
    parser.add_argument("-n", "--lines", type=_count, metavar="N", help="only the last N lines")
    parser.add_argument("--raw", action="store_true", help="every byte as it came")
    options = parser.parse_args(argv)
    home = Home.from_environment()
    record = known.find(home, options.run)
    path = home.run(record.id) / "output.log"
    if not path.exists():
        raise RunNotFoundError(f"{record.name} has printed nothing", hint="`moat list` shows its state")
    alive = alive_while(home, record, follow=options.follow)
    text = None if options.raw or not record.tty else Text()
    write = sys.stdout.buffer.write
    for data in follow(path, _last_lines(path, options.lines), alive):
        write(text.feed(data) if text else data)
        sys.stdout.buffer.flush()
    if text:
        write(text.end())
    return 0


class Text:
    """Terminal output as text, piece by piece: a sequence may be split between two of them."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """The complete lines so far, or most of a line that is very long."""
        data = self._rest + data
        at = max(data.rfind(b"\n"), len(data) - _PIECE)
        self._rest = data[at + 1 :] if at >= 0 else data
        return text_only(data[: at + 1])

    def end(self) -> bytes:
        """The last line, when nothing ended it."""
        return text_only(self._rest)


def follow(path: Path, start: int, alive: Callable[[], bool]) -> Iterator[bytes]:
    """The bytes of `path` from `start`, and what is added to it for as long as `alive` says so."""
    with path.open("rb") as file:
        file.seek(start)
        going = True
        while going:
            going = alive()  # asked first: what was written until then is read below
            while data := file.read(_PIECE):
                yield data
            if going:
                time.sleep(_POLL)


def alive_while(home: Home, record: RunRecord, *, follow: bool) -> Callable[[], bool]:
    directory = home.run(record.id)

    def alive() -> bool:
        return follow and _going(records.read(home, record.id)) and records.owned(directory)

    return alive


def _going(record: RunRecord | None) -> bool:
    return record is not None and not record.state.ended


def _last_lines(path: Path, count: int | None) -> int:
    """The offset of the last `count` lines; None: of everything."""
    if count is None:
        return 0
    with path.open("rb") as file:
        at = end = file.seek(0, os.SEEK_END)
        seen = 0
        while at > 0:
            size = min(_PIECE, at)
            at = file.seek(at - size)
            data = file.read(size)
            for position in range(size - 1, -1, -1):
                if data[position] == 10 and at + position != end - 1:
                    seen += 1
                    if seen == count:
                        return at + position + 1
    return 0 if count else end


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number
