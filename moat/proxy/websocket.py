"""Frames of a WebSocket (RFC 6455). Sans-IO: bytes in, bytes out, either direction.

    ServerFrames   what comes down with a credential: it is masked in messages and control frames
    ClientFrames   what goes up with a credential: placeholders in text messages become credentials
    Passing        without a credential: what passes as it comes, and where a frame of it ends

A message is one text for both, however it is cut into frames: what could be the beginning of a needle at the
end of a frame waits for the next one, and no longer than to the end of its message. A credential that is cut
into messages is found as well: six characters of it at the end of one are masked, fewer leave, and what
follows them in the next is masked (`Scrubber.pause`). A frame of up to 64 KiB leaves as one frame; of a
longer one the pieces leave as they come, as frames of the same message: no message is too big. No
extension is negotiated on such a connection (`site_rules.inspectable`), so a reserved bit is an error like
any other in a frame. An error ends the connection, for both sides with close code 1002: who reads such a
frame differently would see what was not looked at. What a budget does not allow ends it with 1008, and
with 1001 it ends when nothing has moved for too long. Inside of a frame that passes as it comes nobody can be
told: a Close frame would be taken for its payload.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

from moat.dataclass import dataclass
from moat.proxy.placeholders import finder
from moat.proxy.relay import Filter, PartingError, Watch
from moat.proxy.scrub import Scrubber, mask
from moat.proxy.stream import StreamError
from moat.proxy.substitute import Substituted

_LONGEST_HEAD = 14
_WHOLE = 64 * 1024  # a frame of this size is waited for; messages of honest servers are seldom longer
_CONTINUATION, _TEXT, _BINARY, _CLOSE = 0, 1, 2, 8
_GOING_AWAY, _PROTOCOL_ERROR, _POLICY_VIOLATION = 1001, 1002, 1008  # §7.4.1
_LONGEST_REASON = 123
_DATA = frozenset({_CONTINUATION, _TEXT, _BINARY})
_CONTROL = frozenset({_CLOSE, 9, 10})


class ClosedError(PartingError):
    """We end the connection; both sides are told why in a Close frame."""

    def __init__(self, code: int, reason: str, record: str) -> None:
        """`reason` for the peers, `record` for the trace."""
        shown = f"moat: {reason}".encode()[:_LONGEST_REASON].decode(errors="ignore")
        told = code.to_bytes(2) + shown.encode()
        super().__init__(
            record,
            to_client=_frame(_CLOSE, told, last=True, masked=False),
            to_upstream=_frame(_CLOSE, told, last=True, masked=True),
        )


class FrameError(ClosedError):
    """The peer's bytes are no frames as we accept them."""

    def __init__(self, reason: str) -> None:
        super().__init__(_PROTOCOL_ERROR, reason, f"websocket: {reason}")


class Direction(Filter, Protocol):
    """One direction of a WebSocket."""

    messages: int  # that were complete

    @property
    def whole(self) -> bool:
        """Whether what has left so far ends with a frame, after which another may follow."""
        ...


class Closing:
    """Ends a WebSocket as one is ended: both sides are told, as far as they can be."""

    def __init__(self, up: Direction, down: Direction) -> None:
        self._up = up
        self._down = down

    def watch(self, watch: Watch) -> Watch:
        """`watch`, whose objection ends the WebSocket."""
        return _ClosingWatch(watch, self)

    def idle(self, seconds: float) -> ClosedError:
        return self.told(ClosedError(_GOING_AWAY, f"nothing has moved for {seconds:g} s", "timed out"))

    def told(self, error: ClosedError) -> ClosedError:
        if not self._up.whole:
            error.to_upstream = b""
        if not self._down.whole:
            error.to_client = b""
        return error


class _ClosingWatch:
    def __init__(self, watch: Watch, closing: Closing) -> None:
        self._watch = watch
        self._closing = closing

    def up(self, data: bytes) -> None:
        self._ask(self._watch.up, data)

    def down(self, data: bytes) -> None:
        self._ask(self._watch.down, data)

    def _ask(self, may_pass: Callable[[bytes], None], data: bytes) -> None:
        try:
            may_pass(data)
        except StreamError as error:
            raise self._closing.told(ClosedError(_POLICY_VIOLATION, str(error), str(error))) from None


class Passing:
    """A direction that passes as it comes, extensions included. Only lengths are read."""

    messages = 0  # nobody counts them

    def __init__(self) -> None:
        self._head = b""  # the beginning of one
        self._left = 0  # bytes of the frame under way
        self._over = False  # a Close frame has passed

    @property
    def whole(self) -> bool:
        return not (self._head or self._left or self._over)

    def feed(self, data: bytes) -> bytes:
        at, end = self._left, len(data)
        if at >= end:
            self._left = at - end
            return data
        buffer, self._head = self._head + data[at:], b""
        at, end = 0, len(buffer)
        while at < end:
            size = _size(buffer, at)
            if size == 0:
                self._head = buffer[at:]
                break
            self._over = self._over or buffer[at] & 0x0F == _CLOSE
            at += size
        self._left = max(0, at - end)
        return data

    def finish(self) -> bytes:
        return b""


def _size(buffer: bytes, at: int) -> int:
    """The size of the frame that begins there; 0 while its length is not all there."""
    if at + 2 > len(buffer):
        return 0
    length, mask = buffer[at + 1] & 0x7F, 4 if buffer[at + 1] & 0x80 else 0
    extended = {126: 2, 127: 8}.get(length, 0)
    if at + 2 + extended > len(buffer):
        return 0
    if extended:
        length = int.from_bytes(buffer[at + 2 : at + 2 + extended])
    return 2 + extended + mask + length


class _Frames(ABC):
    """One direction, taken apart and put together again. `messages` counts those that are complete."""

    masked = False  # clients mask, servers do not (RFC 6455 §5.1)
    whole = True  # pieces of a long frame leave as frames

    def __init__(self) -> None:
        self.messages = 0
        self._buffer = b""
        self._left = 0  # payload bytes of the frame that is passed on in pieces
        self._last = False  # it ends its message
        self._key = b""
        self._at = 0  # position in its payload, for the mask
        self._opcode = 0  # of the message under way; 0: none is
        self._begun = False  # a frame of it has left

    def feed(self, data: bytes) -> bytes:
        """What can leave now. Raises FrameError, which takes along what came before it."""
        parts: list[bytes] = []
        try:
            self._take_apart(self._buffer + data if self._buffer else data, parts)
        except FrameError as error:
            if self.masked:
                error.to_upstream = b"".join([*parts, error.to_upstream])
            else:
                error.to_client = b"".join([*parts, error.to_client])
            raise
        return b"".join(parts)

    def _take_apart(self, buffer: bytes, parts: list[bytes]) -> None:
        at = 0
        while at < len(buffer):
            if not self._left:
                head = _head(buffer[at : at + _LONGEST_HEAD], masked=self.masked)
                if head is None or (head.length <= _WHOLE and len(buffer) < at + head.size + head.length):
                    break
                at += head.size
                if head.opcode in _CONTROL:
                    payload = _unmasked(buffer[at : at + head.length], head.key, 0)
                    parts.append(self._wire(head.opcode, self._control(payload), last=True))
                    at += head.length
                    continue
                self._begin(head)
            piece = buffer[at : at + self._left]
            parts.append(self._piece(piece))
            at += len(piece)
        self._buffer = buffer[at:]

    def finish(self) -> bytes:
        """The stream is over. What had no end never was a message."""
        return b""

    # --- what the two directions do with it ------------------------------------------------------

    @abstractmethod
    def _text(self, opcode: int, payload: bytes, *, last: bool) -> bytes:
        """What can leave of a message, with its next payload."""

    def _control(self, payload: bytes) -> bytes:
        return payload

    # --- one frame -------------------------------------------------------------------------------

    def _begin(self, head: _Head) -> None:
        if head.opcode == _CONTINUATION:
            if not self._opcode:
                raise FrameError("a continuation of no message")
        elif self._opcode:
            raise FrameError("a message begins inside another")
        else:
            self._opcode, self._begun = head.opcode, False
        self._left, self._last, self._key, self._at = head.length, head.last, head.key, 0

    def _piece(self, piece: bytes) -> bytes:
        """The next payload bytes of the frame under way."""
        payload = _unmasked(piece, self._key, self._at)
        self._left -= len(piece)
        self._at += len(piece)
        last = self._last and not self._left
        leaving = self._text(self._opcode, payload, last=last)
        if not leaving and not last:
            return b""
        wire = self._wire(_CONTINUATION if self._begun else self._opcode, leaving, last=last)
        self._begun = True
        if last:
            self._opcode = 0
            self.messages += 1
        return wire

    def _wire(self, opcode: int, payload: bytes, *, last: bool) -> bytes:
        return _frame(opcode, payload, last=last, masked=self.masked)


class ServerFrames(_Frames):
    """Responses: every secret in them is masked with `*` of the same length."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        super().__init__()
        self._secrets = tuple(secrets)
        self._scrubber = Scrubber(self._secrets)

    def _text(self, opcode: int, payload: bytes, *, last: bool) -> bytes:
        del opcode
        leaving = self._scrubber.feed(payload)
        return leaving + self._scrubber.pause() if last else leaving

    def _control(self, payload: bytes) -> bytes:
        return mask(payload, self._secrets)


class ClientFrames(_Frames):
    """Requests: placeholders in text messages are replaced; everything else leaves as it came."""

    masked = True

    def __init__(self, swaps: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """`swaps`: placeholder, and what goes out in its place."""
        super().__init__()
        self._substituted: Substituted | None = None
        if swaps:
            placeholders, secrets = zip(*swaps, strict=True)
            self._substituted = Substituted(finder(placeholders, percent=False), secrets, lambda _found: None)

    def _text(self, opcode: int, payload: bytes, *, last: bool) -> bytes:
        if opcode != _TEXT or self._substituted is None:
            return payload
        leaving = self._substituted.feed(payload)
        return leaving + self._substituted.finish() if last else leaving


@dataclass(frozen=True, slots=True)
class _Head:
    last: bool
    opcode: int
    length: int
    key: bytes  # b"": not masked
    size: int  # bytes of the head itself


def _head(buffer: bytes, *, masked: bool) -> _Head | None:
    """The head at the beginning of `buffer`; None while it is not all there. Raises FrameError."""
    if len(buffer) < 2:
        return None
    first, second = buffer[0], buffer[1]
    last, opcode, length = bool(first & 0x80), first & 0x0F, second & 0x7F
    if first & 0x70:
        raise FrameError("a reserved bit is set, and no extension was agreed upon")
    if opcode not in _DATA | _CONTROL:
        raise FrameError(f"opcode {opcode} has no meaning")
    if bool(second & 0x80) is not masked:
        raise FrameError("a client's frame without a mask" if masked else "a server's frame with a mask")
    if opcode in _CONTROL and (not last or length > 125):
        raise FrameError("a control frame that is long or in fragments")
    size = {126: 4, 127: 10}.get(length, 2)
    if len(buffer) < size + 4 * masked:
        return None
    if length > 125:
        shortest = 126 if length == 126 else 65536
        length = int.from_bytes(buffer[2:size])
        if length < shortest or length >= 1 << 63:
            raise FrameError("a length that is not written in the shortest way")
    return _Head(last, opcode, length, buffer[size : size + 4] if masked else b"", size + 4 * masked)


def _frame(opcode: int, payload: bytes, *, last: bool, masked: bool) -> bytes:
    size, bit = len(payload), 0x80 if masked else 0
    first = bytes((opcode | (0x80 if last else 0),))
    if size < 126:
        head = first + bytes((bit | size,))
    elif size < 65536:
        head = first + bytes((bit | 126,)) + size.to_bytes(2)
    else:
        head = first + bytes((bit | 127,)) + size.to_bytes(8)
    if not masked:
        return head + payload
    key = os.urandom(4)  # a mask that a page could foresee would let it write to the wire (§10.3)
    return head + key + _unmasked(payload, key, 0)


def _unmasked(payload: bytes, key: bytes, at: int) -> bytes:
    """Masked or unmasked: it is the same. `at` is the position of `payload` in its frame."""
    if not key or not payload:
        return payload
    turned = key[at % 4 :] + key[: at % 4]
    stream = (turned * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload) ^ int.from_bytes(stream)).to_bytes(len(payload))
