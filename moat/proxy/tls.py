"""TLS as a transformation of bytes: ciphertext in, plaintext out. No socket, no waiting.

One implementation for every event loop. OpenSSL works on two memory buffers: what the peer sent goes into
one, what must go to the peer is fetched from the other. Four things are easy to get wrong here:
  - Bytes that follow the last handshake message may already be inside OpenSSL when the handshake ends;
    `receive(b"")` fetches them.
  - `read` returns at most one record; it has to be called until it wants more.
  - Reading can produce output (an answer to a key update). It stays in the buffer and leaves in front of
    the next record that we send, which is the order TLS asks for.
  - Python's `unwrap` sends close_notify and then wants the peer's, which we never wait for.
Only this file and `certs` know `ssl`; above it there are StreamErrors.
"""

from __future__ import annotations

import contextlib
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path

from moat.proxy.stream import StreamError
from moat.verification import client_context

H2, HTTP1 = "h2", "http/1.1"  # ALPN (RFC 7301)
_RECORD = 16384  # plaintext of the largest TLS record


class TLSError(StreamError):
    """A handshake or a record failed. `verification`: the peer's certificate was not accepted."""

    def __init__(
        self, reason: str, connection: ssl.SSLObject | None = None, *, verification: bool = False
    ) -> None:
        super().__init__(reason)
        self.connection = connection
        self.verification = verification

    @property
    def no_protocol(self) -> bool:
        """The peer speaks nothing of what ALPN offered."""
        return "no application protocol" in str(self)


class TLSSession:
    """One side of one TLS connection."""

    __slots__ = ("_incoming", "_outgoing", "_pending", "_read", "_write", "ended", "object")

    def __init__(self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.object = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        self._read = self.object.read
        self._write = self.object.write
        self._pending = self.object.pending
        self.ended = False  # the peer's close_notify has arrived

    def handshake(self, data: bytes) -> bool:
        """Go on with what the peer sent; True when the handshake is complete. Raises TLSError."""
        self._incoming.write(data)
        try:
            self.object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLCertVerificationError as error:
            reason = error.verify_message or "certificate verify failed"
            raise TLSError(reason, self.object, verification=True) from error
        except (ssl.SSLError, ValueError) as error:
            raise TLSError(_reason(error), self.object) from error
        return True

    @property
    def ticket(self) -> bool:
        """Whether all that waits after the handshake is a session ticket (RFC 8446 §4.6.1)."""
        return self.object.server_side and self.object.version() == "TLSv1.3"

    def output(self) -> bytes:
        """What has to go to the peer."""
        return self._outgoing.read()

    def receive(self, data: bytes) -> bytes:
        """All plaintext that is complete with `data`. Raises TLSError."""
        incoming, read = self._incoming, self._read
        incoming.write(data)
        parts: list[bytes] = []
        size = min(incoming.pending, _RECORD) or _RECORD  # what is allocated, for a record that is no longer
        try:
            while part := read(size):
                parts.append(part)
                if not incoming.pending and not self._pending():
                    break
            else:
                self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True  # what `read` raises, instead of returning b"", once we have said goodbye
        except ssl.SSLError as error:
            raise TLSError(_reason(error)) from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def send(self, data: bytes) -> bytes:
        """The records that carry `data`. Raises TLSError."""
        if not data:
            return b""
        try:
            self._write(data)
        except ssl.SSLError as error:
            raise TLSError(_reason(error)) from error
        return self._outgoing.read()

    def close(self) -> bytes:
        """close_notify. The peer may go on sending."""
        with contextlib.suppress(ssl.SSLError):
            self.object.unwrap()
        return self._outgoing.read()


def verifying_context(
    ca_bundle: Path | None = None, extra_roots: bytes = b"", protocols: Sequence[str] = (HTTP1,)
) -> ssl.SSLContext:
    """The one client context of a proxy: system roots and the user's, names checked, TLS 1.2 or later.

    Takes about 40 ms; call it in a worker thread. Raises OSError (also ssl.SSLError) for a bad bundle.
    """
    context = client_context()
    if ca_bundle is not None:
        context.load_verify_locations(cafile=ca_bundle)
    if extra_roots:
        context.load_verify_locations(cadata=extra_roots.decode("ascii", "replace"))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(list(protocols))
    return context


def ignore_names_that_are_none() -> None:
    """Keep Python from printing a traceback for each server name that is not ASCII (RFC 6066 §3).

    The handshake fails and is recorded all the same, and whoever connects could fill the log with them. It
    is the process's own hook that is wrapped: for programs, not for libraries.
    """
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        of_a_name = isinstance(unraisable.object, bytes) or (  # which Python 3.14 has in its message instead
            unraisable.err_msg or ""
        ).startswith("Exception ignored in ssl servername callback")
        if not (isinstance(unraisable.exc_value, UnicodeDecodeError) and of_a_name):
            before(unraisable)

    sys.unraisablehook = hook


def _reason(error: Exception) -> str:
    """`TLSV1_ALERT_UNKNOWN_CA` → `tlsv1 alert unknown ca`."""
    reason = getattr(error, "reason", None) or str(error)
    return reason.replace("_", " ").lower()
