"""A TLS origin that echoes what it received, plain or gzip, and remembers every byte of it."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

_HANDSHAKE = b"\x16"  # first byte of every TLS connection


class Origin:
    """`received`: one bytes object per connection, `plain`: what came without TLS. `connections` counts all."""

    def __init__(self, leaf: Path) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(leaf)
        self.received: list[bytearray] = []
        self.plain: list[bytes] = []
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
        with contextlib.suppress(OSError):
            if peer.recv(1, socket.MSG_PEEK) not in {_HANDSHAKE, b""}:
                self._listen(peer)
                return
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

    def _listen(self, peer: socket.socket) -> None:
        with peer:
            self.plain.append(peer.recv(65536))
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

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
