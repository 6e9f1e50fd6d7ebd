"""A TLS origin that echoes what it received, plain or gzip, and remembers every byte of it."""

from __future__ import annotations

import contextlib
import datetime as dt
import gzip
import json
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def make_pki(directory: Path, names: Sequence[str]) -> tuple[Path, Path]:
    """A CA and one leaf for `names`; returns (CA certificate, leaf certificate with its key)."""
    now = dt.datetime.now(dt.UTC)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "attack suite CA")])
    key = ec.generate_private_key(ec.SECP256R1())

    def build(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=2))
        )

    ca = (
        build(ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    leaf = (
        build(x509.Name([]), key.public_key())
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    ca_file, leaf_file = directory / "ca.pem", directory / "leaf.pem"
    ca_file.write_bytes(ca.public_bytes(pem))
    leaf_file.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + leaf.public_bytes(pem)
    )
    return ca_file, leaf_file


class Origin:
    """`received`: one bytes object per connection. `connections` counts TCP accepts, TLS or not."""

    def __init__(self, leaf: Path) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(leaf)
        self.received: list[bytearray] = []
        self.connections = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._socket.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        log = bytearray()
        self.received.append(log)
        with contextlib.suppress(OSError), peer, self.context.wrap_socket(peer, server_side=True) as tls:
            tls.settimeout(20)
            buffer = b""
            while True:
                while b"\r\n\r\n" not in buffer:
                    data = tls.recv(65536)
                    if not data:
                        return
                    log += data
                    buffer += data
                head, buffer = buffer.split(b"\r\n\r\n", 1)
                length = 0
                for line in head.split(b"\r\n")[1:]:
                    name, _, value = line.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                while len(buffer) < length:
                    data = tls.recv(65536)
                    if not data:
                        return  # cut off by the proxy
                    log += data
                    buffer += data
                body, buffer = buffer[:length], buffer[length:]
                tls.sendall(self._answer(head, body))

    def _answer(self, head: bytes, body: bytes) -> bytes:
        text = json.dumps({"head": head.decode("latin-1"), "body": body.decode("latin-1")}).encode()
        fields = [b"Content-Type: application/json"]
        if b"gzip" in head.split(b"\r\n")[0]:
            text = gzip.compress(text)
            fields.append(b"Content-Encoding: gzip")
        if b"unreadable" in head.split(b"\r\n")[0]:
            fields.append(b"Content-Encoding: br")  # as it says; nobody on the way can tell
        fields += [
            b"X-Echo: " + line.split(b":", 1)[1].strip()
            for line in head.split(b"\r\n")[1:]
            if line.lower().startswith((b"authorization:", b"x-api-key:"))
        ]
        fields.append(b"Content-Length: %d" % len(text))
        return b"HTTP/1.1 200 OK\r\n" + b"\r\n".join(fields) + b"\r\n\r\n" + text

    def everything(self) -> bytes:
        return b"".join(bytes(log) for log in self.received)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@contextlib.contextmanager
def origin(leaf: Path) -> Iterator[Origin]:
    server = Origin(leaf)
    try:
        yield server
    finally:
        server.close()
