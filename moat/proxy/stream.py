"""The byte stream that the proxy is written against, and nothing of HTTP.

A stream is a socket with three additions: `receive()` hands over everything that has come in so far,
bytes that were read too far can be put back (`unread`), and TLS can be started over what was put back.
How bytes get in and out of the kernel is the business of the two subclasses: `stream_asyncio` (asyncio
and uvloop: a Protocol) and `stream_anyio` (trio: a non-blocking socket). TLS is the same for both: a
`TLSSession` that turns bytes into bytes.

How a stream ends, and what `receive()` does then:
  the peer finished     b"", and `truncated` tells whether TLS ended without its goodbye
  it broke              StreamError, after everything that came in before has been handed over
  its time was over     StreamTimeoutError: `deadline` has passed and the `Watch` has expired it
  we closed it          StreamError
One task receives and one task sends at a time; nobody has to hold a lock.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import ssl
import struct
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TYPE_CHECKING

import anyio

from moat.proxy.batch import Batch
from moat.proxy.busy_poll import BusyPoll

if TYPE_CHECKING:
    from moat.proxy.tls import TLSSession

# What a stream buffers in each direction before it stops reading or makes the sender wait. Sixteen TLS
# records: enough that a bulk body costs one wake-up per read and not one per record.
BUFFER = 256 * 1024
CLOSE_SECONDS = 5.0  # how long a peer may take to accept what is still buffered when we close
TICK_SECONDS = 0.25  # resolution of every deadline
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: l_onoff, l_linger


class StreamError(Exception):
    """The connection broke, or was closed under the reader. `str()` says how, in lower case."""


class UntakenError(StreamError):
    """The peer has said that it did nothing with what it was sent: to send it again is to send it once."""


class StreamTimeoutError(StreamError):
    """The stream's deadline has passed."""


class Stream(ABC):
    """One connection. See the module's docstring for how it ends."""

    __slots__ = (
        "_broken",
        "_ended",
        "_gone",
        "_gone_at_eof",
        "_inbox",
        "_plain",
        "_tls",
        "_watch",
        "deadline",
        "local",
        "sock",
    )

    def __init__(self, sock: socket.socket, watch: Watch) -> None:
        self.sock = sock  # for addresses and options only
        self.deadline = math.inf  # `time.monotonic()` at which the Watch expires the stream
        self._inbox: list[bytes] = []  # as it came from the socket
        self._plain = b""  # ready for the reader: put back, or decrypted together with a handshake
        self._tls: TLSSession | None = None
        self._ended = False  # the peer's FIN has arrived
        self._broken: StreamError | None = None
        self._gone: Callable[[], None] | None = None
        self._gone_at_eof = True
        self._watch = watch
        watch.add(self)
        self.local = sock.family == socket.AF_UNIX  # the peer is on this machine, and there is no TCP
        if not self.local:
            # asyncio sets it only when sock.proto says TCP, which an accepted socket need not say; without
            # it small answers wait 40 ms for a delayed acknowledgement.
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    # --- what the transports provide -------------------------------------------------------------

    @abstractmethod
    def _more(self) -> Awaitable[None]:
        """Wait until the inbox has grown, the peer has finished, or the stream broke."""

    @abstractmethod
    async def _write(self, data: bytes) -> None:
        """Hand bytes to the kernel; wait while more than BUFFER are on their way."""

    @abstractmethod
    async def _write_eof(self) -> None: ...

    @abstractmethod
    async def _close(self, goodbye: bytes) -> None:
        """Send `goodbye`, flush for at most CLOSE_SECONDS and release the socket."""

    @abstractmethod
    def _close_now(self, goodbye: bytes) -> None:
        """The same without waiting; what the kernel does not take may be lost."""

    @abstractmethod
    def _abort(self) -> None:
        """Release the socket now and wake whoever waits. Harmless when that was done before."""

    @abstractmethod
    def poll(self) -> None:
        """Take in what the kernel holds, without waiting. Only needed where nobody reads."""

    def _taken(self) -> None:  # noqa: B027 - a hook that only one transport needs
        """The inbox was emptied: reading may go on."""

    # --- receiving -------------------------------------------------------------------------------

    async def receive(self) -> bytes:
        """Everything that has come in, at least one byte; b"" when the peer has finished.

        Raises StreamError. Cancelling loses nothing.
        """
        while True:
            if (self._inbox or self._plain) and (data := self._available()):
                return data
            if self.ended:
                return b""
            if self._broken is not None:
                raise self._broken
            await self._more()

    def unread(self, data: bytes) -> None:
        """Put back what was received and belongs to a later reader."""
        self._plain = data + self._plain

    @property
    def ended(self) -> bool:
        """The peer has finished sending; what came before may still wait to be received."""
        return self._ended or (self._tls is not None and self._tls.ended)

    @property
    def truncated(self) -> bool:
        """TLS ended by a bare FIN: what came before may be incomplete."""
        return self._ended and self._tls is not None and not self._tls.ended

    @property
    def broken(self) -> bool:
        return self._broken is not None

    def quiet(self) -> bool:
        """Whether an idle connection can be used: open, and nothing to read but TLS housekeeping.

        A TLS 1.3 server sends session tickets after the handshake, so "readable" does not mean dead.
        """
        if self._broken is not None:
            return False
        self.poll()
        try:
            self._plain = self._available()
        except StreamError:
            return False
        return not (self._plain or self.ended or self._broken)

    def _available(self) -> bytes:
        inbox, plain = self._inbox, self._plain
        if not inbox:
            if plain:
                self._plain = b""
            return plain
        data = inbox[0] if len(inbox) == 1 else b"".join(inbox)
        inbox.clear()
        self._taken()
        if self._tls is not None:
            try:
                data = self._tls.receive(data)
            except StreamError as error:
                self._broken = error
                data = b""
        if plain:
            self._plain = b""
            return plain + data
        return data

    # --- sending ---------------------------------------------------------------------------------

    async def send(self, data: bytes) -> None:
        """Send all of `data`. Raises StreamError when it cannot arrive; what came in stays readable."""
        if self._broken is not None:
            raise self._broken
        await self._write(self._tls.send(data) if self._tls is not None else data)

    async def send_eof(self) -> None:
        """Finish our direction (TLS: close_notify, then FIN). Receiving goes on."""
        if self._broken is None:
            if self._tls is not None:
                # OpenSSL gives up on a session that says goodbye while data waits to be read.
                self._plain = self._available()
                await self._write(self._tls.close())
            await self._write_eof()

    # --- TLS -------------------------------------------------------------------------------------

    async def start_tls(
        self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None
    ) -> ssl.SSLObject:
        """Do the handshake, over bytes put back by `unread` if there are any.

        Raises TLSError (a StreamError) with the reason, StreamTimeoutError, or StreamError.
        """
        from moat.proxy.tls import TLSSession

        tls = TLSSession(context, server_side=server_side, server_hostname=server_hostname)
        data, self._plain = self._plain, b""
        while True:
            done = False
            try:
                done = tls.handshake(data)
            finally:
                # Also after a failure: the alert tells the peer why. A server's session ticket waits for what
                # the server says next: nobody needs it sooner, and a packet of its own costs two wake-ups.
                if self._broken is None and not (done and tls.ticket) and (output := tls.output()):
                    await self._write(output)
            if done:
                break
            while not (data := self._available()):
                if self._ended or self._broken is not None:
                    raise self._broken or StreamError("the peer left during the TLS handshake")
                await self._more()
        self._tls = tls
        self._plain = tls.receive(b"")
        return tls.object

    # --- ending ----------------------------------------------------------------------------------

    async def aclose(self, *, goodbye: bool = True) -> None:
        """Say goodbye, flush and release the socket. Never raises; the second time does nothing.

        Without `goodbye`, everything sent is flushed but TLS ends by a bare FIN: the peer can tell that
        there should have been more.
        """
        last = self._end(goodbye=goodbye)
        if last is not None:
            await self._close(last)

    def close(self) -> None:
        """The same without waiting for anybody."""
        last = self._end(goodbye=True)
        if last is not None:
            self._close_now(last)

    def _end(self, *, goodbye: bool) -> bytes | None:
        """Take the stream out of use; the last bytes to send, or None when it had already ended."""
        self._gone = None
        self._watch.discard(self)
        if self._tls is not None and self._broken is None:
            self._plain = self._available()  # OpenSSL says no goodbye while data waits to be read
        if self._broken is not None:
            self._abort()
            return None
        self._broken = StreamError("the connection is closed")
        return self._tls.close() if goodbye and self._tls is not None else b""

    def abort(self, reason: str = "the connection is closed") -> None:
        """Drop the connection so that the peer notices: a reset, and no goodbye of TLS."""
        if self._broken is None and not self.local:
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._break(StreamError(reason))

    def _break(self, error: StreamError) -> None:
        if self._broken is None:
            self._broken = error
        self._gone = None
        self._watch.discard(self)
        self._abort()

    def when_gone(self, call: Callable[[], None] | None, *, at_eof: bool = True) -> None:
        """Call once when the peer leaves while nobody receives; at once when it already has.

        Who waits for an upstream must not wait on behalf of a client that has gone. `at_eof`: a peer
        that has finished its direction counts as gone; otherwise only one whose connection broke.
        """
        self._gone = call
        if call is not None:
            self._gone_at_eof = at_eof
            self._check_gone()

    def _check_gone(self) -> None:
        if self._gone is not None and (self._broken is not None or (self._ended and self._gone_at_eof)):
            call, self._gone = self._gone, None
            call()


class PausableStream(Stream):
    """A stream whose bytes somebody else can move, from socket to socket."""

    __slots__ = ()

    @property
    @abstractmethod
    def bare(self) -> bool:
        """Whether its bytes are those of the socket: it is open, and without TLS."""

    @abstractmethod
    def pause(self) -> bytes:
        """Read no more; what has come in."""

    @abstractmethod
    async def flushed(self) -> None:
        """Wait until the kernel has all that was sent. Raises StreamError."""

    @abstractmethod
    async def lost(self) -> StreamError:
        """Wait until the stream breaks by its deadline or `abort`: a paused one notices nothing else."""


class Watch:
    """Expires streams whose deadline has passed. One timer for all: a deadline costs an assignment."""

    def __init__(self) -> None:
        self._streams: set[Stream] = set()
        self.batch = Batch()  # of what they send
        self.poll = BusyPoll()  # for what they answer

    def add(self, stream: Stream) -> None:
        self._streams.add(stream)

    def discard(self, stream: Stream) -> None:
        self._streams.discard(stream)

    def __len__(self) -> int:
        return len(self._streams)

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            await anyio.sleep(TICK_SECONDS)
            self.tick(monotonic())

    def tick(self, now: float) -> None:
        for stream in tuple(self._streams):
            if stream.deadline <= now:
                stream._break(StreamTimeoutError("timed out"))
            elif stream._gone is not None:
                stream.poll()
                stream._check_gone()

    def abort_all(self) -> None:
        for stream in tuple(self._streams):
            stream.abort("the proxy shuts down")


async def open_stream(sock: socket.socket, watch: Watch) -> Stream:
    """Make a stream of a connected non-blocking socket; owns the socket, also when it raises."""
    from moat.proxy.stream_asyncio import AsyncioStream, running_loop

    if (loop := running_loop()) is not None:
        return await AsyncioStream.open(loop, sock, watch)
    from moat.proxy.stream_anyio import AnyioStream

    return AnyioStream(sock, watch)


def broken(error: BaseException | None) -> StreamError:
    """The StreamError that says what an OSError means."""
    if isinstance(error, OSError) and error.errno is not None:
        return StreamError(reason(error.errno))
    return StreamError(str(error) if error is not None and str(error) else "the connection broke")


def reason(code: int) -> str:
    """What an errno means, in lower case."""
    return os.strerror(code).lower()
