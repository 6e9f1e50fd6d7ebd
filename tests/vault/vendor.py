"""A vendor on loopback: a real TLS server for several names, direct and behind CONNECT.

It answers what a test tells it to and records what it was asked. Certificates are of a CA made here.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.fakes.pki import make_pki

Answer = tuple[int, object] | tuple[int, object, dict[str, str]]  # status, JSON body (or bytes), headers


@dataclass(frozen=True)
class Asked:
    host: str
    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes


@dataclass
class Vendor:
    answer: Callable[[Asked], Answer]
    port: int = 0  # TLS at once
    proxy_port: int = 0  # plain HTTP, CONNECT
    ca: Path = Path()
    asked: list[Asked] = field(default_factory=list)
    pause: float = 0.0  # seconds in the middle of a body

    def config(self, home: Path, *hosts: str) -> None:
        """Write a `config.yaml` into `home` that sends `hosts` here."""
        home.mkdir(parents=True, exist_ok=True)
        lines = ["upstream:", f"  ca_bundle: {self.ca}", "  connect_to:"]
        lines += [f'    "{host}:443": "127.0.0.1:{self.port}"' for host in hosts]
        (home / "config.yaml").write_text("\n".join(lines) + "\n")
        (home / "config.yaml").chmod(0o600)


@contextmanager
def vendor(directory: Path, answer: Callable[[Asked], Answer], *hosts: str) -> Iterator[Vendor]:
    """Serve `hosts` until the block ends."""
    directory.mkdir(parents=True, exist_ok=True)
    ca, leaf = make_pki(directory, hosts)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf)
    told = Vendor(answer, ca=ca)

    class Handler(_Handler):
        vendor = told
        tls = context

    class Direct(Handler):
        def setup(self) -> None:
            self.request = context.wrap_socket(self.request, server_side=True)
            super().setup()

    servers = [_Server(("127.0.0.1", 0), Direct), _Server(("127.0.0.1", 0), Handler)]
    told.port, told.proxy_port = (server.server_address[1] for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield told
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that refuses the certificate or leaves early is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    vendor: Vendor
    tls: ssl.SSLContext
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_CONNECT(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self.wfile.flush()
        self.connection = self.request = self.tls.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", 0)
        self.close_connection = False

    def _serve(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self._body(headers)
        host = headers.get("host", "").split(":")[0]
        asked = Asked(host, self.command, self.path, headers, body)
        self.vendor.asked.append(asked)
        status, value, *more = self.vendor.answer(asked)
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in ({"Content-Type": "application/json"} | (more[0] if more else {})).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            half = len(data) // 2 if self.vendor.pause else 0
            self.wfile.write(data[:half])
            time.sleep(self.vendor.pause)
            self.wfile.write(data[half:])

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _serve  # noqa: N815 - names of http.server

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def finish(self) -> None:
        super().finish()
        self.request.close()
