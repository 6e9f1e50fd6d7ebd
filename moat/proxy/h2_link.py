"""One HTTP/2 connection, either side of it: frames by the `h2` library, bytes by a `Stream`.

What the library does not do is here: windows that open only as data is taken, a writer that makes everybody
wait for a peer that does not read, a bound on frames that cost us and bring nothing, and a GOAWAY after
which streams still end in peace. The only file that imports `h2`, and imported only when a peer speaks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

import anyio
import anyio.lowlevel
from h2.config import H2Configuration
from h2.connection import AllowedStreamIDs, ConnectionState, H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    AlternativeServiceAvailable,
    ConnectionTerminated,
    DataReceived,
    Event,
    InformationalResponseReceived,
    PingAckReceived,
    PingReceived,
    PriorityUpdated,
    RemoteSettingsChanged,
    RequestReceived,
    ResponseReceived,
    SettingsAcknowledged,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    UnknownFrameReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError, StreamClosedError
from h2.settings import SettingCodes
from h2.stream import H2Stream
from hyperframe.frame import Frame, GoAwayFrame

from moat.proxy.limits import Limits
from moat.proxy.stream import BUFFER, Stream, StreamError, StreamTimeoutError

__all__ = [
    "REFUSAL",
    "RESET",
    "ConnectionTerminated",
    "DataReceived",
    "ErrorCodes",
    "Event",
    "InformationalResponseReceived",
    "Link",
    "LinkError",
    "RequestReceived",
    "ResponseReceived",
    "StreamEnded",
    "StreamReset",
    "TrailersReceived",
]

_TABLE = 4096  # HPACK table that we keep for a peer, however large a one it allows
_CROWD = 256
_SLICE = 16 * 1024  # bytes that the library gets at a time: it takes all frames in them before we can object
_FRAME = 64 * 1024  # largest DATA frame that we send to a peer that takes such
_EXPLAINED = 4  # units that each HEADERS and DATA frame of ours explains: two reads, or a server's reset
_MESSAGE = 8  # bytes of DATA that explain one more: a message that the peer has read by itself
_REMEMBERED = 16 * 1024  # units that are still to come for what we have sent, at most
_NO_BOUND = 2**31 - 1  # the largest window (§6.9.1)
RESET = 4  # units of the allowance: it has made us begin, and stop, an exchange (CVE-2023-44487)
REFUSAL = 1  # of a stream too many
# What a frame costs that carries no request and no data.
_COSTS: dict[type[Event], int] = {
    PingReceived: 1,
    PingAckReceived: 1,
    RemoteSettingsChanged: 2,
    SettingsAcknowledged: 1,
    PriorityUpdated: 1,
    UnknownFrameReceived: 1,
    AlternativeServiceAvailable: 1,
    ConnectionTerminated: 1,
    StreamReset: RESET,
}


class LinkError(StreamError):
    """The peer broke the protocol or floods us; the connection is over, and it has been told so."""


class Signal:
    """Wakes everybody who waits at this moment."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        self._event.set()
        self._event = anyio.Event()

    async def wait(self) -> None:
        await self._event.wait()


class _Machine(H2Connection):
    """The library's state machine where it is stricter or narrower than RFC 9113 asks for.

    Three of its hooks are private: the dependency is pinned to the major version that has them.
    """

    unheard = 0  # frames that it has dropped without a word: those of streams that are over

    def _receive_frame(self, frame: Frame) -> list[Event]:
        events: list[Event] = super()._receive_frame(frame)
        if not events and not _is_reading(getattr(frame, "window_increment", frame.body_len)):
            self.unheard += 1
        return events

    def _begin_new_stream(self, stream_id: int, allowed_ids: AllowedStreamIDs) -> H2Stream:
        """A content-length that is wrong is the fault of a stream (§8.1.1), and a 304 may have one."""
        stream = super()._begin_new_stream(stream_id, allowed_ids)
        hooks: Any = stream
        hooks._initialize_content_length = hooks._track_content_length = _unchecked
        return stream

    _crowded = _CROWD  # streams, ended ones included, that are looked through once more

    @property
    def open_inbound_streams(self) -> int:
        """One stream too many is refused by itself (§5.1.2); `Link`'s owner counts.

        The library would look through all its streams for each that begins, to forget those that have ended.
        """
        if len(self.streams) > self._crowded:
            super().open_inbound_streams  # noqa: B018 - forgets
            self._crowded = _CROWD + 2 * len(self.streams)
        return 0

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        """The peer begins no more streams. Those that it has taken go on (§6.8)."""
        event = ConnectionTerminated()
        event.error_code, event.last_stream_id = ErrorCodes.NO_ERROR, frame.last_stream_id
        return [], [event]

    def goaway(self) -> None:
        """Announce the end; unlike the library's, this leaves the streams that there are alone."""
        frame = GoAwayFrame(0)
        frame.last_stream_id = self.highest_inbound_stream_id
        self._prepare_for_sending([frame])


def _unchecked(*_: object) -> None:
    """In place of the library's checks of content-length."""


class Link:
    """The connection. `run` writes; its owner calls `read` and hands on what the events say."""

    def __init__(self, stream: Stream, limits: Limits, *, client_side: bool) -> None:
        self.stream = stream
        self.limits = limits
        self.h2 = _Machine(
            H2Configuration(
                client_side=client_side,
                header_encoding=None,
                validate_inbound_headers=False,  # `h2_fields` does, and blames the stream
            )
        )
        self.changed = Signal()  # a window has grown, settings changed, or a stream has ended
        self.closed = False
        self._due = anyio.Event()  # there is something to write
        self._written = Signal()
        self._out = bytearray()
        self._writing = False
        # Clients that know nothing of each other share a connection to a server: the window of each stream is
        # bound enough, and one for all would let whoever reads nothing hold up the others.
        self._whole_window = _NO_BOUND if client_side else limits.h2_window
        self._allowance = float(limits.h2_allowance)
        self._refilled = monotonic()
        self._explained = 0  # units that cost the peer nothing
        settings: dict[SettingCodes | int, int] = {
            SettingCodes.MAX_CONCURRENT_STREAMS: limits.h2_streams,
            SettingCodes.MAX_HEADER_LIST_SIZE: limits.head,
            SettingCodes.INITIAL_WINDOW_SIZE: limits.h2_stream_window,
        }
        if client_side:
            settings = {**settings, SettingCodes.ENABLE_PUSH: 0, SettingCodes.MAX_CONCURRENT_STREAMS: 0}
        # The library's defaults are what it would send: ours take their place before they do.
        self.h2.local_settings.update(settings)
        self.h2.local_settings.acknowledge()
        self.h2.decoder.max_header_list_size = limits.head

    # --- writing ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Send our preface."""
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(self._whole_window - 65_535)
        self.flush()

    def flush(self) -> None:
        """What the library wants to send is on its way."""
        if data := self.h2.data_to_send():
            self._out += data
            self._due.set()

    async def write(self) -> None:
        """Write until cancelled; a peer that takes nothing for long ends the connection."""
        try:
            while True:
                await self._due.wait()
                self._due = anyio.Event()
                data, self._out = bytes(self._out), bytearray()
                if data:
                    self._writing = True
                    await self.stream.send(data)
                    self._writing = False
                self._written.set()
        except StreamError as error:
            self.stream.abort(str(error))  # whoever reads is told
            self.abandon()

    async def room(self) -> None:
        """Wait while the peer is slow to take what is on its way.

        Raises StreamTimeoutError when it takes nothing.
        """
        while len(self._out) > BUFFER and not self.closed:
            try:
                with anyio.fail_after(self.limits.body_idle_timeout):
                    await self._written.wait()
            except TimeoutError:
                raise StreamTimeoutError("the peer takes nothing") from None

    async def drained(self) -> None:
        while (self._out or self._writing) and not self.stream.broken:
            await self._written.wait()

    # --- streams ---------------------------------------------------------------------------------

    def send_headers(self, stream_id: int, fields: Iterable[tuple[bytes, bytes]], *, end: bool) -> None:
        """A head or trailers. Raises StreamError when the stream has ended."""
        try:
            self.h2.send_headers(stream_id, list(fields), end_stream=end)
        except ProtocolError as error:
            raise StreamError(_words(error)) from error
        self._explain(0)
        self.flush()

    async def send_data(self, stream_id: int, data: bytes, source: Stream) -> None:
        """Data, as fast as windows open, unless its `source` breaks. Raises StreamError, StreamTimeoutError.

        `source.when_gone` has to set `changed`.
        """
        at, end = 0, len(data)
        try:
            while at < end:
                window = self.h2.local_flow_control_window(stream_id)
                size = min(window, self.h2.max_outbound_frame_size, _FRAME, end - at)
                if size <= 0:
                    await self._window(source)
                    continue
                self.h2.send_data(stream_id, data[at : at + size])
                self._explain(size)
                at += size
                self.flush()
                await self.room()
        except ProtocolError as error:
            raise StreamError(_words(error)) from error

    async def _window(self, source: Stream) -> None:
        if self.closed or source.broken:
            raise StreamError("the stream has ended")
        try:
            with anyio.fail_after(self.limits.body_idle_timeout):
                await self.changed.wait()
        except TimeoutError:
            raise StreamTimeoutError("the flow-control window stayed closed") from None

    def end(self, stream_id: int) -> None:
        """Finish our direction of a stream. Raises StreamError."""
        try:
            self.h2.end_stream(stream_id)
        except ProtocolError as error:
            raise StreamError(_words(error)) from error
        self.flush()

    def reset(self, stream_id: int, code: ErrorCodes) -> None:
        """Break a stream off, if it has not ended."""
        stream = self.h2.streams.get(stream_id)
        if stream is None or stream.closed or self.closed:
            return
        try:
            self.h2.reset_stream(stream_id, code)
        except ProtocolError:
            return
        self.flush()
        self.changed.set()

    def taken(self, stream_id: int, size: int) -> None:
        """`size` bytes of a stream's data have gone on: as many may come."""
        if size and not self.closed:
            try:
                self.h2.acknowledge_received_data(size, stream_id)
            except (ProtocolError, StreamClosedError):
                return
            self.flush()

    # --- reading ---------------------------------------------------------------------------------

    async def read(self, handle: Callable[[Event], None]) -> None:
        """Take in frames until the peer finishes. `handle` gets the events that concern streams.

        Raises StreamError; LinkError when the peer is to blame.
        """
        while data := await self.stream.receive():
            for at in range(0, len(data), _SLICE):
                if at:
                    await anyio.lowlevel.checkpoint()  # many small frames must not keep others waiting
                self._take(data[at : at + _SLICE], handle)
            await self.room()  # who does not read our answers asks no more

    def _take(self, data: bytes, handle: Callable[[Event], None]) -> None:
        try:
            events = self.h2.receive_data(data)
        except ProtocolError as error:
            self.flush()
            raise LinkError(_words(error)) from error
        pending = self.h2.incoming_buffer._data
        if int.from_bytes(pending[:3], "big") > self.h2.max_inbound_frame_size and len(pending) >= 3:
            # The library waits for all of a frame before it finds it too large: up to 16 MiB.
            self._terminate(ErrorCodes.FRAME_SIZE_ERROR)
            raise LinkError("a frame is too large")
        unheard, self.h2.unheard = self.h2.unheard, 0
        self.spend(self._unexplained(unheard))
        for event in events:
            self._account(event)
            if not isinstance(event, WindowUpdated):
                handle(event)
        self.changed.set()
        self.flush()

    def _account(self, event: Event) -> None:
        """Bound what costs and brings nothing: pings, settings, resets, empty data, windows of nothing."""
        cost = _COSTS.get(type(event), 0)
        if isinstance(event, RemoteSettingsChanged):
            self.h2.encoder.header_table_size = min(self.h2.encoder.header_table_size, _TABLE)
        elif isinstance(event, DataReceived):
            cost = 0 if event.data or event.stream_ended else 1
        elif isinstance(event, WindowUpdated):
            cost = 0 if _is_reading(event.delta or 0) else self._unexplained(1)
        elif isinstance(event, StreamReset) and self.h2.config.client_side:
            cost = self._unexplained(RESET)
        self.spend(cost)

    def _explain(self, size: int) -> None:
        """A frame of ours with so many bytes of data is on its way."""
        self._explained = min(self._explained + _EXPLAINED + size // _MESSAGE, _REMEMBERED)

    def _unexplained(self, cost: int) -> int:
        """What is left of it: a window for each small message, say, is the work of a peer that reads ours."""
        explained = min(cost, self._explained)
        self._explained -= explained
        return cost - explained

    def spend(self, cost: int) -> None:
        """Raises LinkError when the peer has used up its allowance."""
        if not cost:
            return
        now = monotonic()
        refill = (now - self._refilled) * self.limits.h2_allowance_per_second
        self._allowance = min(self._allowance + refill, float(self.limits.h2_allowance)) - cost
        self._refilled = now
        if self._allowance < 0:
            self._terminate(ErrorCodes.ENHANCE_YOUR_CALM)
            raise LinkError("too many frames that carry nothing")

    # --- the end ---------------------------------------------------------------------------------

    def _terminate(self, code: ErrorCodes) -> None:
        if self.h2.state_machine.state is not ConnectionState.CLOSED:
            self.h2.close_connection(code)
            self.flush()

    def abandon(self) -> None:
        """No stream sends or receives any more."""
        self.closed = True
        self.changed.set()
        self._written.set()

    async def aclose(self) -> None:
        """Say goodbye, flush and close. `write` is still to be cancelled."""
        if not self.stream.broken:
            self._terminate(ErrorCodes.NO_ERROR)
            with anyio.move_on_after(self.limits.close_timeout):
                await self.drained()
        self.abandon()
        await self.stream.aclose()


def _is_reading(size: int) -> bool:
    """Whether a window, or late data, is for so much that a peer at work would send it."""
    return size >= 256


def _words(error: ProtocolError) -> str:
    text = str(error)
    if text.isdigit():  # all that the library says of a stream that is over, or never was
        return f"a frame of stream {text}, which there is not"
    return f"{text[:1].lower()}{text[1:]}" or type(error).__name__
