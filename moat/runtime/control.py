"""The words on a run's control socket, and how a plain (blocking) program says them.

A frame is `type u8 · length u32 big-endian · payload`. A connection begins with HELLO, which says what
it is for:

view     output arrives as STDOUT and STDERR frames, EXIT or LEFT ends it; closing the connection detaches.
         RESIZE, REDRAW, REPAINT, and unless `read_only` SIGNAL, STOP and ANSWER
input    a connection of its own for stdin, so that a command that does not read holds up only this
         one and a Ctrl-C behind a full pipe still arrives
control  status (the answer to HELLO), STOP, SIGNAL, PAUSE, NOTE, QUESTIONS, ANSWER; EXIT when the run has
         ended. After EXECUTE it belongs to one further command: INPUT, CLOSE_STDIN, RESIZE, SIGNAL to it,
         STDOUT, STDERR and at last DONE (or NOTICE: it cannot be) from it; it ends with the connection

The socket lies in a 0700 directory that no sandbox sees; the server asks the kernel for the peer's uid.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator, Mapping
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from moat.errors import StartError

if TYPE_CHECKING:
    from asyncio import StreamReader  # a plain program needs none

HEADER = struct.Struct(">BI")
# A run's record holds its argv, of which Linux allows 2 MiB and JSON makes up to six times as much.
MAX_PAYLOAD = 16 << 20
Role = Literal["view", "input", "control"]


class Frame(IntEnum):
    HELLO = 1  # JSON {"role", "lead", "size": [columns, rows] | null, "read_only", "steal"}
    INPUT = 2  # bytes for stdin
    RESIZE = 3  # columns u16, rows u16
    SIGNAL = 4  # number u8
    CLOSE_STDIN = 5
    STOP = 6  # f64 seconds of grace between SIGTERM and SIGKILL
    PAUSE = 7  # hold the sandbox still until this connection ends; answered by PAUSED or NOTICE
    NOTE = 8  # JSON {"event": "snapshot.…", "data": {…}} for the journal; answered by NOTED
    QUESTIONS = 9  # what waits for the user; answered by ASKED
    ANSWER = 10  # JSON of a `questions.Answer`; on a control connection answered by ANSWERED or NOTICE

    EXECUTE = 11  # JSON {"argv", "size": [columns, rows] | null, "stdin", "dumb"}; dumb: its terminal
    REDRAW = 12  # answered by SCREEN, and by what the program paints
    REPAINT = 13  # answered by what the program paints

    WELCOME = 16  # JSON of the run's record
    STDOUT = 17
    STDERR = 18
    EXIT = 19  # JSON of the run's record, ended
    NOTICE = 20  # UTF-8 text for the user
    PAUSED = 21
    NOTED = 22
    ASKED = 23  # JSON {"waiting": [`questions.Asked`…], "missed": […]}; viewers get it whenever it changes
    ANSWERED = 24  # JSON {"requests": how many waited for it}
    DONE = 25  # JSON {"exit_code"}
    SCREEN = 28  # bytes that bring a terminal to what the program shows; what was on it before is void
    LEFT = 29  # UTF-8 reason why this viewer was sent away; the run goes on


class BrokenFrameError(Exception):
    """The peer does not speak this protocol."""


def pack(kind: Frame, payload: bytes = b"") -> bytes:
    return HEADER.pack(kind, len(payload)) + payload


def pack_json(kind: Frame, value: Mapping[str, Any]) -> bytes:
    return pack(kind, json.dumps(value).encode())


def hello(
    role: Role,
    *,
    lead: bool = False,
    size: tuple[int, int] | None = None,
    read_only: bool = False,
    steal: bool = False,
) -> bytes:
    """lead: who says it started the run. steal: everybody else who watches or types is sent away."""
    value = {"role": role, "lead": lead, "size": size, "read_only": read_only, "steal": steal}
    return pack_json(Frame.HELLO, value)


async def read_frame(reader: StreamReader) -> tuple[Frame, bytes]:
    """The next frame. Raises EOFError at the end, BrokenFrameError."""
    kind, length = parse_header(await reader.readexactly(HEADER.size))
    return kind, await reader.readexactly(length)


def pack_size(columns: int, rows: int) -> bytes:
    return pack(Frame.RESIZE, struct.pack(">HH", min(columns, 65535), min(rows, 65535)))


def unpack_size(payload: bytes) -> tuple[int, int]:
    try:
        columns, rows = struct.unpack(">HH", payload)
    except struct.error as error:
        raise BrokenFrameError(str(error)) from None
    return columns, rows


def unpack_json(payload: bytes) -> dict[str, Any]:
    try:
        value = json.loads(payload)
    except ValueError as error:
        raise BrokenFrameError(str(error)) from None
    if not isinstance(value, dict):
        raise BrokenFrameError("not an object")
    return value


def parse_header(header: bytes) -> tuple[Frame, int]:
    kind, length = HEADER.unpack(header)
    if length > MAX_PAYLOAD:
        raise BrokenFrameError(f"{length} bytes announced")
    try:
        return Frame(kind), length
    except ValueError as error:
        raise BrokenFrameError(str(error)) from None


class Decoder:
    """Bytes in, frames out. No socket, no clock."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Frame, bytes]]:
        """The frames that `data` completes. Raises BrokenFrameError."""
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            kind, length = parse_header(bytes(self._buffer[: HEADER.size]))
            end = HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[HEADER.size : end])
            del self._buffer[:end]
            yield kind, payload


def _silent(reason: str) -> StartError:
    return StartError(
        f"the run does not answer on its control socket: {reason}", hint="`moat list` shows its state"
    )


class Connection:
    """A blocking control connection: what the command line uses, without an event loop."""

    def __init__(
        self,
        path: Path | str,
        role: Role,
        *,
        lead: bool = False,
        size: tuple[int, int] | None = None,
        read_only: bool = False,
        steal: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Connect, say `hello` and wait for the answer. Raises StartError when nobody answers."""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        self._decoder = Decoder()
        self._frames: Iterator[tuple[Frame, bytes]] = iter(())
        try:
            self.socket.connect(str(path))
            self.socket.sendall(hello(role, lead=lead, size=size, read_only=read_only, steal=steal))
            # Read now: closing a socket with something unread in it discards what was just sent.
            answer = self.receive()
        except OSError as error:
            self.socket.close()
            raise _silent(error.strerror or "no answer in time") from None
        if answer is None or answer[0] is not Frame.WELCOME:
            self.socket.close()
            raise _silent("it hung up")
        self.record = unpack_json(answer[1])  # the run's record at this moment

    def send(self, frame: bytes) -> None:
        self.socket.sendall(frame)

    def receive(self) -> tuple[Frame, bytes] | None:
        """The next frame; None when the other side closed. Raises TimeoutError and OSError."""
        while True:
            for frame in self._frames:
                return frame
            data = self.socket.recv(65536)
            if not data:
                return None
            self._frames = self._decoder.feed(data)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
