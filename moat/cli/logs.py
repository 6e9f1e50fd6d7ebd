"""`moat logs [run]`."""

from __future__ import annotations

import argparse
import datetime as dt
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from moat.cli.following import alive_while
from moat.cli.log_lines import Line, Lines
from moat.cli.output import say
from moat.cli.parser import Parser
from moat.cli.results import tell_failure
from moat.config.ask import seconds_of
from moat.errors import RunNotFoundError, UsageError
from moat.paths import Home
from moat.runtime import known, output_log
from moat.runtime.output_log import Piece
from moat.runtime.records import RunRecord
from moat.runtime.screen import text_only

_PIECE = 65536


def main(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    home = Home.from_environment()
    record = known.find(home, options.run)
    if not output_log.exists(home.run(record.id)):
        tell_failure(home, record.id)
        raise RunNotFoundError(f"{record.name} has printed nothing", hint="`moat list` shows its state")
    _show(options, _Log(options, home, record), record)
    tell_failure(home, record.id)
    return 0


def _show(options: argparse.Namespace, log: _Log, record: RunRecord) -> None:
    if options.timestamps or options.json or (options.lines is not None and log.picks):
        shown = Line.as_json if options.json else Line.as_text if options.timestamps else Line.as_output
        for line in log.lines():
            _write(shown(line, tty=record.tty))
        return
    text = None if options.raw or not record.tty else Text()
    for piece in log.pieces():
        _write(text.feed(piece.output.data) if text else piece.output.data)
    if text:
        _write(text.end())


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="moat logs",
        description="Print what a run printed, in the order in which it came. Of a run with a terminal the "
        "text is shown, without the control sequences that would draw on this one.",
    )
    add = parser.add_argument
    add("run", nargs="?", help="name or id (default: the newest)")
    add("-f", "--follow", action="store_true", help="go on until the run has ended")
    add("-n", "--lines", type=_count, metavar="N", help="only the last N lines")
    add("-t", "--timestamps", action="store_true", help="before each line its time and its stream")
    add("--since", metavar="TIME", help="only what came after: 90s, 10m, 2h ago, or 2026-01-31T12:00:00Z")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--stdout", action="store_const", dest="stream", const="stdout", help="only stdout")
    which.add_argument("--stderr", action="store_const", dest="stream", const="stderr", help="only stderr")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--raw", action="store_true", help="every byte as it came")
    how.add_argument("--json", action="store_true", help="one object a line: time, stream, text, partial")
    return parser


class _Log:
    """What was asked for of one log."""

    def __init__(self, options: argparse.Namespace, home: Home, record: RunRecord) -> None:
        self._options = options
        self._directory = home.run(record.id)
        self._alive = alive_while(home, record, follow=options.follow)
        self._since = None if options.since is None else _moment(options.since)
        if options.stream and record.tty:
            raise UsageError(f"{record.name} has a terminal, which knows no stderr", hint="moat logs")

    @property
    def picks(self) -> bool:
        """Not all of the output is meant, so the last lines are not those at the end of the file."""
        return self._options.stream is not None or self._since is not None

    def pieces(self) -> Iterator[Piece]:
        return self._from(self._start(), self._alive)

    def _start(self) -> int:
        if self._since is not None:
            return output_log.since(self._directory, self._since)
        if self._options.lines is not None and not self.picks:
            return output_log.last_lines(self._directory, self._options.lines)
        return 0

    def _from(self, start: int, alive: Callable[[], bool]) -> Iterator[Piece]:
        self._at = start
        for piece in output_log.pieces(self._directory, start, alive):
            if piece.at > self._at:
                say(f"{piece.at - self._at} bytes of the output are no longer there (output.max_size)")
            self._at = piece.at + len(piece.output.data)
            if self._options.stream in {None, piece.output.stream}:
                yield piece

    def lines(self) -> Iterator[Line]:
        """The last ones of those that are there, and with `--follow` what comes after."""
        lines, last = Lines(), deque[Line](maxlen=self._options.lines)
        for piece in self._from(self._start(), lambda: False):
            last.extend(lines.feed(piece))
            if self._options.lines is None:
                yield from last
                last.clear()
        if not self._options.follow:
            last.extend(lines.end())
        yield from last
        if self._options.follow:
            for piece in self._from(self._at, self._alive):
                yield from lines.feed(piece)
            yield from lines.end()


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


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _moment(text: str) -> float:
    """Seconds since the epoch. Raises UsageError."""
    ago = seconds_of(text)
    if ago is not None:
        return time.time() - ago
    try:
        return dt.datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise UsageError(
            f"--since {text}: not a time", hint="e.g. 90s, 10m, 2h or 2026-01-31T12:00:00Z"
        ) from None


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number
