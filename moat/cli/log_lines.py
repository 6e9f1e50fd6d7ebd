"""The output of a run as lines, each of one stream and with its time."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

from moat.cli.output import json_text
from moat.dataclass import dataclass
from moat.runtime.output_log import Piece
from moat.runtime.screen import text_only

_LONGEST = 1 << 20  # bytes of a line; what is longer comes in several


@dataclass(frozen=True, slots=True)
class Line:
    stream: str
    time: float | None  # of its first byte, in seconds since the epoch
    data: bytes  # without the line end
    partial: bool = False  # it goes on in the next line of the stream

    @property
    def stamp(self) -> str | None:
        """RFC 3339, UTC, milliseconds."""
        if self.time is None:
            return None
        moment = dt.datetime.fromtimestamp(self.time, dt.UTC)
        return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"

    def shown(self, *, tty: bool) -> bytes:
        """Of a terminal's line what it shows in the end: a program may have written over it."""
        return text_only(self.data.rstrip(b"\r").rpartition(b"\r")[2]) if tty else self.data

    def as_text(self, *, tty: bool) -> bytes:
        """`TIME STREAM TEXT`; a terminal has one stream."""
        stream = "" if tty else f"{self.stream}+ " if self.partial else f"{self.stream} "
        return f"{self.stamp or '-'} {stream}".encode() + self.shown(tty=tty) + b"\n"

    def as_output(self, *, tty: bool) -> bytes:
        return self.shown(tty=tty) + (b"" if self.partial else b"\n")

    def as_json(self, *, tty: bool) -> bytes:
        text = self.shown(tty=tty).decode(errors="backslashreplace")
        shown = {"time": self.stamp, "stream": self.stream, "text": text, "partial": self.partial}
        return json_text(shown).encode() + b"\n"


class Lines:
    """Puts lines together: those of the two streams may come in pieces, and in turns."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[float | None, bytearray]] = {}

    def feed(self, piece: Piece) -> Iterator[Line]:
        stream, data, at = piece.output.stream, piece.output.data, 0
        while at < len(data):
            began, line = self._open.setdefault(stream, (piece.time, bytearray()))
            end = data.find(b"\n", at)
            if end < 0:
                line += data[at:]
                at = len(data)
                if len(line) >= _LONGEST:
                    del self._open[stream]
                    yield Line(stream, began, bytes(line), partial=True)
            else:
                line += data[at:end]
                at = end + 1
                del self._open[stream]
                yield Line(stream, began, bytes(line))

    def end(self) -> Iterator[Line]:
        """What no line end has ended."""
        for stream, (began, line) in self._open.items():
            yield Line(stream, began, bytes(line))
