"""What the proxy knows of SSH (RFC 4253): that a tunnel carries it, which sessions it carries, how to refuse.

Nothing is decrypted. The first key exchange happens in the clear, and in it the server signs the identifier
of the session. Whoever sees that signature pass knows later that a session went through this very tunnel;
the run's SSH agent signs for no other.
"""

from __future__ import annotations

from collections.abc import Callable

from moat.authority import Authority
from moat.dataclass import dataclass
from moat.proxy.stream import StreamError
from moat.sshwire import Fields, WireError, string, uint32

IDENTIFICATION = b"SSH-"  # RFC 4253 §4.2: how either side begins
_DISCONNECT, _NEWKEYS = 1, 21
# Replies that carry the server's key and signature: (EC)DH and hybrids (RFC 4253 §8, RFC 5656 §4), group
# exchange (RFC 4419 §3). The group of a group exchange has number 31 as well, and is told by its shape.
_REPLIES = frozenset({31, 33})
_NOT_ALLOWED = 1  # SSH_DISCONNECT_HOST_NOT_ALLOWED_TO_CONNECT
_PREAMBLE = 64 * 1024  # bytes of lines that a server may send before its identification
_PACKET = 256 * 1024  # RFC 4253 §6.1 asks for 35000; post-quantum replies are a few KiB


@dataclass(frozen=True, slots=True)
class SshTunnel:
    """A host and port that are passed on as bytes, as long as the client speaks SSH."""

    authority: Authority
    seen: Callable[[bytes], None]  # told the server's signature of each session, before the client has it


class SshWatch:
    """Watches one connection through a tunnel; see `relay.Watch`."""

    def __init__(self, tunnel: SshTunnel) -> None:
        self._tunnel = tunnel
        self._begun = b""  # the client's first bytes, until they tell
        self._exchange: KeyExchange | None = KeyExchange()

    def up(self, data: bytes) -> None:
        """Raises StreamError for what is not SSH: an opaque tunnel is no way around the proxy for TLS."""
        if len(self._begun) < len(IDENTIFICATION):
            self._begun += data[: len(IDENTIFICATION)]
            if not IDENTIFICATION.startswith(self._begun[: len(IDENTIFICATION)]):
                raise StreamError("only SSH may pass here")

    def down(self, data: bytes) -> None:
        if self._exchange is None:
            return
        if (signature := self._exchange.feed(data)) is not None:
            self._tunnel.seen(signature)
        if self._exchange.over:
            self._exchange = None


class KeyExchange:
    """Reads the server's side of a connection until its signature of the session identifier has passed."""

    def __init__(self) -> None:
        self.over = False  # found, or there is nothing to be found any more
        self._buffer = bytearray()  # what is taken from its front costs nothing
        self._identified = False

    def feed(self, data: bytes) -> bytes | None:
        """The signature (as it stands in the reply), when `data` completes it."""
        if self.over:
            return None
        self._buffer += data
        try:
            return self._read()
        except WireError:
            self.over = True
            return None

    def _read(self) -> bytes | None:
        while not self._identified:
            end = self._buffer.find(b"\n") + 1
            if not end:
                self._bounded(_PREAMBLE)
                return None
            self._identified = self._buffer.startswith(IDENTIFICATION)
            del self._buffer[:end]
        while (payload := self._packet()) is not None:
            if payload[:1] == bytes([_NEWKEYS]):
                raise WireError("the exchange went by without a signature")
            if payload and payload[0] in _REPLIES and (signature := _signature(payload[1:])) is not None:
                self.over = True
                return signature
        return None

    def _packet(self) -> bytes | None:
        """The payload of the next unencrypted packet (RFC 4253 §6), None when it is not complete."""
        if len(self._buffer) < 5:
            return None
        fields = Fields(bytes(self._buffer[:5]))
        length, padding = fields.uint32(), fields.byte()
        if not padding < length <= _PACKET:
            raise WireError("bad packet length")
        if len(self._buffer) < 4 + length:
            return None
        payload = bytes(self._buffer[5 : 4 + length - padding])
        del self._buffer[: 4 + length]
        return payload

    def _bounded(self, limit: int) -> None:
        if len(self._buffer) > limit:
            raise WireError("too much without an end")


def _signature(reply: bytes) -> bytes | None:
    """Host key, the server's public value, signature; None for a message of another shape."""
    fields = Fields(reply)
    try:
        fields.string()
        fields.string()
        signature = fields.string()
        fields.end()
    except WireError:
        return None
    return signature


def refusal(reason: str) -> bytes:
    """What a server sends that does not want this client: OpenSSH shows the reason."""
    payload = bytes([_DISCONNECT]) + uint32(_NOT_ALLOWED) + string(reason.encode()) + string(b"")
    padding = 8 - (5 + len(payload)) % 8  # RFC 4253 §6: whole blocks of 8, at least 4 bytes
    padding += 8 if padding < 4 else 0
    packet = uint32(1 + len(payload) + padding) + bytes([padding]) + payload + bytes(padding)
    return b"SSH-2.0-moat\r\n" + packet
