"""The other sides of the proxy's sockets: real origins and real clients, blocking, in threads.

An origin runs a script for every connection; the script sees the very bytes and decides the very bytes.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import functools
import gzip
import json
import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Callable
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

PATIENCE = 15.0  # seconds until a blocking peer gives up: a hang must become a failure


class TestCA:
    """A certificate authority of the world outside, and certificates of its origins."""

    __test__ = False

    def __init__(self, name: str = "Test Upstream CA") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self._certificate = self._build(self._name, self._key, []).sign(self._key, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def pem_of(self, *names: str, days: tuple[int, int] = (-1, 30)) -> bytes:
        """A new key, and its certificate for `names`."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
        alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        certificate = self._build(subject, key, alternatives, days).sign(self._key, hashes.SHA256())
        return key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ) + certificate.public_bytes(serialization.Encoding.PEM)

    def context(
        self, *names: str, tls: ssl.TLSVersion | None = None, days: tuple[int, int] = (-1, 30)
    ) -> ssl.SSLContext:
        """A server context with a certificate for `names`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if tls is not None:
            context.maximum_version = tls
        with tempfile.NamedTemporaryFile() as file:
            file.write(self.pem_of(*names, days=days))
            file.flush()
            context.load_cert_chain(file.name)
        return context

    def _build(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        names: list[x509.GeneralName],
        days: tuple[int, int] = (-1, 30),
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + dt.timedelta(days=days[0]))
            .not_valid_after(now + dt.timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(ca=not names, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )
        if names:
            return builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        usage = dict.fromkeys(  # an authority has to say it, for clients as strict as Python 3.13's default
            (
                "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
                "key_agreement", "encipher_only", "decipher_only",
            ),
            False,
        )  # fmt: skip
        return builder.add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)


class _TLSSocket(ssl.SSLSocket):
    """One that closes itself when its peer has reset it before `wrap_socket` began, which drops it open.

    A cut is an end like others as long as `suppress_ragged_eofs` says so: also before Python 3.11.4.
    """

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        try:
            return super().recv(buflen, flags)
        except OSError as error:
            if getattr(error, "reason", "") == "UNEXPECTED_EOF_WHILE_READING" and self.suppress_ragged_eofs:
                return b""
            if self.version() is None and error.errno not in {errno.ENOTCONN, errno.EINVAL}:
                self.close()
            raise


class Wire:
    """A blocking socket with a buffer, for reading exactly what a test asks for."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""
        sock.settimeout(PATIENCE)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def receive(self) -> bytes:
        """What is there; b"" at the end."""
        if self.buffer:
            data, self.buffer = self.buffer, b""
            return data
        return self.sock.recv(262144)

    def until(self, end: bytes) -> bytes:
        """Everything up to and with `end`; what there is when the peer finishes first."""
        while end not in self.buffer:
            data = self.sock.recv(262144)
            if not data:
                data, self.buffer = self.buffer, b""
                return data
            self.buffer += data
        at = self.buffer.index(end) + len(end)
        data, self.buffer = self.buffer[:at], self.buffer[at:]
        return data

    def exactly(self, size: int) -> bytes:
        while len(self.buffer) < size:
            data = self.sock.recv(262144)
            if not data:
                raise ConnectionError(
                    f"ended after {len(self.buffer)} of {size} bytes: {self.buffer[:200]!r}"
                )
            self.buffer += data
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def rest(self) -> bytes:
        """Everything until the peer finishes."""
        parts = [self.buffer]
        self.buffer = b""
        while data := self.sock.recv(262144):
            parts.append(data)
        return b"".join(parts)

    def chunk(self) -> bytes:
        """The payload of the next chunk; b"" for the last one, whose trailers stay unread."""
        size = int(self.until(b"\r\n"), 16)
        if not size:
            return b""
        data = self.exactly(size)
        assert self.exactly(2) == b"\r\n"
        return data

    def message(self, *, head_only: bool = False) -> Message:
        return Message.read(self, head_only=head_only)

    def tls(self, context: ssl.SSLContext, name: str | None, *, server: bool = False) -> Wire:
        assert not self.buffer
        context.sslsocket_class = _TLSSocket
        wire = Wire(context.wrap_socket(self.sock, server_side=server, server_hostname=name))
        self.sock = wire.sock
        return wire

    def finish(self) -> None:
        """Finish our direction."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        # Closing a TLS socket sends no close_notify; a polite peer says goodbye first.
        if isinstance(self.sock, ssl.SSLSocket):
            with contextlib.suppress(OSError, ValueError):
                self.sock.setblocking(False)
                self.sock.unwrap()
        self.sock.close()

    def cut(self) -> None:
        """Close without TLS's goodbye."""
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Message:
    """A request or response as a peer reads it: naive on purpose, it is not the code under test."""

    def __init__(self, start: str, headers: list[tuple[str, str]], body: bytes) -> None:
        self.start = start
        self.headers = headers
        self.body = body

    @classmethod
    def read(cls, wire: Wire, *, head_only: bool = False) -> Message:
        raw = wire.until(b"\r\n\r\n")
        if not raw.endswith(b"\r\n\r\n"):
            raise ConnectionError(f"ended inside a head: {raw!r}")
        lines = raw[:-4].decode("latin-1").split("\r\n")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:])]
        message = cls(lines[0], headers, b"")
        if not head_only:
            message.body = message._body(wire)
        return message

    def _body(self, wire: Wire) -> bytes:
        bodiless = self.start.startswith("HTTP/") and (self.status < 200 or self.status in {204, 304})
        if bodiless:
            return b""
        if self.get("transfer-encoding") == "chunked":
            parts = list(iter(wire.chunk, b""))
            while (line := wire.until(b"\r\n")) != b"\r\n":
                name, _, value = line.decode().strip().partition(": ")
                self.headers.append((f"trailer:{name}", value))
            return b"".join(parts)
        if (length := self.get("content-length")) is not None:
            return wire.exactly(int(length))
        return wire.rest() if self.start.startswith("HTTP/") else b""

    @property
    def status(self) -> int:
        return int(self.start.split(" ")[1])

    @property
    def method(self) -> str:
        return self.start.split(" ")[0]

    @property
    def target(self) -> str:
        return self.start.split(" ")[1]

    def get(self, name: str) -> str | None:
        values = self.all(name)
        return values[0] if values else None

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def json(self) -> Any:
        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"<{self.start} {len(self.body)} bytes>"


Script = Callable[[Wire], None]


class Origin:
    """A listening socket on loopback; `script` runs in a thread for every connection."""

    def __init__(self, script: Script, *, context: ssl.SSLContext | None = None) -> None:
        self.script = script
        self.context = context
        self.accepted = 0  # TCP connections
        self.failures: list[BaseException] = []  # what scripts raised
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self.address = ("127.0.0.1", self.port)
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in tuple(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.accepted += 1
                self._open.add(sock)
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        wire = Wire(sock)
        try:
            if self.context is not None:
                wire = wire.tls(self.context, None, server=True)
            self.script(wire)
        except OSError:
            pass  # the proxy hung up; tests look at what arrived
        except BaseException as error:
            self.failures.append(error)
        finally:
            self._open.discard(sock)
            with contextlib.suppress(OSError):
                wire.close()


def reply(status: int, body: bytes = b"", *headers: str, reason: str = "Whatever") -> bytes:
    lines = [f"HTTP/1.1 {status} {reason}", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def echo(wire: Wire) -> None:
    """Answers every request with what it saw, as JSON. `/gzip` compresses it, `/close` closes after it."""
    with contextlib.suppress(ConnectionError):
        while True:
            request = wire.message()
            seen = {
                "start": request.start,
                "headers": request.headers,
                "body": request.body.decode("latin-1"),
            }
            body = json.dumps(seen).encode()
            headers = ["Content-Type: application/json"]
            if authorization := request.get("authorization"):
                headers.append(f"X-Seen-Authorization: {authorization}")
            if request.target.startswith("/gzip"):
                body = gzip.compress(body)
                headers.append("Content-Encoding: gzip")
            if request.target.startswith("/close"):
                headers.append("Connection: close")
            head_only = request.method == "HEAD"
            wire.send(reply(200, body, *headers)[: -len(body) if head_only else None])
            if request.target.startswith("/close"):
                return


def client_context(ca_pem: bytes) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=ca_pem.decode())
    context.options &= (
        ~ssl.OP_IGNORE_UNEXPECTED_EOF
    )  # which Python before 3.11.4 sets: a cut would look like an end
    context.set_alpn_protocols(["http/1.1"])
    return context


@functools.cache
def world() -> TestCA:
    """The CA that all test origins use; the proxy under test trusts it."""
    return TestCA()
