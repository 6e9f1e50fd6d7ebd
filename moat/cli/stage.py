"""A little world for `moat demo` and `moat doctor`: a TLS origin, canaries and a Moat home of their own.

Everything is on this machine and gone afterwards. The origin plays hosts of the internet; only the
stage's `config.yaml` (`upstream.connect_to`, `upstream.ca_bundle`) leads to it, so Moat itself is the
very same that a user runs.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import selectors
import shutil
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moat.dataclass import dataclass
from moat.errors import StartError
from moat.paths import Home, private_dir, write_private

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import CertificateBuilder


@dataclass(frozen=True, slots=True)
class Received:
    """A request as the origin got it."""

    host: str
    method: str
    path: str
    headers: dict[str, str]  # lower-case names


@dataclass(slots=True)
class Origin:
    """The TLS server that plays the internet. It answers with everything it was sent."""

    port: int
    received: list[Received] = field(default_factory=list)


@dataclass(slots=True)
class Canary:
    """TCP and UDP on every address of this machine, one port; any touch is an escape."""

    port: int
    touched: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Stage:
    home: Home
    workspace: Path
    origin: Origin
    canary: Canary


@contextlib.contextmanager
def stage(home: Home, hosts: Sequence[str]) -> Iterator[Stage]:
    """A stage whose origin plays `hosts`. Points MOAT_HOME and the vault of this process at it."""
    # Not in /tmp: that may be a tmpfs, which older kernels cannot map to another uid.
    place = Path(tempfile.mkdtemp(prefix="stage-", dir=private_dir(home.cache)))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        bundle, chain = place / "origin-ca.pem", place / "origin.pem"
        _make_certificates(hosts, bundle, chain)
        origin = stack.enter_context(_serve(chain))
        canary = stack.enter_context(_watch())
        inside = Home(place / "home")
        lines = [f'    "{host}:443": "127.0.0.1:{origin.port}"' for host in hosts]
        config = ["upstream:", f"  ca_bundle: {json.dumps(str(bundle))}", "  connect_to:", *lines, ""]
        write_private(inside.config_file, "\n".join(config).encode())
        workspace = place / "workspace"
        workspace.mkdir()
        stack.enter_context(
            _environment(
                MOAT_HOME=str(inside.root),
                MOAT_KEYRING_BACKEND="file",
                MOAT_KEY_FILE=str(place / "key"),
                MOAT_PASSPHRASE=None,
                MOAT_PASSPHRASE_FD=None,
                MOAT_PROFILE=None,
                HTTPS_PROXY=None,  # the origin is on this machine
                https_proxy=None,
            )
        )
        yield Stage(inside, workspace, origin, canary)


def host_addresses() -> tuple[str, ...]:
    """Addresses of this machine that a sandbox might try, IPv4, loopback last."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # chooses the way out; a connected UDP socket sends nothing
        found.append(str(probe.getsockname()[0]))
    return tuple(dict.fromkeys([*found, "127.0.0.1"]))


@contextlib.contextmanager
def _environment(**values: str | None) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextlib.contextmanager
def _serve(chain: Path) -> Iterator[Origin]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    origin = Origin(0)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            # The handshake is done here, in the connection's own thread, so that nobody can hold up accept().
            self.request = context.wrap_socket(self.request, server_side=True)
            super().setup()

        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", 0)))
            origin.received.append(Received(headers.get("host", ""), self.command, self.path, headers))
            echo = {"headers": headers, "body": body.decode(errors="replace")}
            answer = json.dumps(echo).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.send_header("X-Echo", headers.get("authorization") or headers.get("x-api-key") or "-")
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET  # noqa: N815 - the name that the base class looks for

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
            """Nothing: the origin's log is `received`."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that gives up is not worth a traceback."""

    with Server(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        origin.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield origin
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def _watch() -> Iterator[Canary]:
    """Raises StartError when the canary itself does not sing: then its silence would prove nothing."""
    tcp, udp = _canary_sockets()
    canary = Canary(tcp.getsockname()[1])
    done, wake = socket.socketpair()

    def watch() -> None:
        with selectors.DefaultSelector() as selector:
            for source in (tcp, udp, wake):
                selector.register(source, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is wake:
                        return
                    if key.fileobj is tcp:
                        connection, peer = tcp.accept()
                        connection.close()
                        canary.touched.append(f"tcp from {peer[0]}")
                    else:
                        _, peer = udp.recvfrom(2048)
                        canary.touched.append(f"udp from {peer[0]}")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        _check_canary(canary)
        yield canary
    finally:
        done.close()
        thread.join()
        for source in (tcp, udp, wake):
            source.close()


def _canary_sockets() -> tuple[socket.socket, socket.socket]:
    for _ in range(20):
        tcp = socket.create_server(("0.0.0.0", 0))  # noqa: S104 - the point: a service open to everybody
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            udp.bind(("0.0.0.0", tcp.getsockname()[1]))  # noqa: S104 - as above
        except OSError:
            tcp.close()
            udp.close()
        else:
            return tcp, udp
    raise StartError("no port is free for both TCP and UDP")


def _check_canary(canary: Canary) -> None:
    for address in host_addresses():
        with contextlib.suppress(OSError):
            socket.create_connection((address, canary.port), timeout=2).close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"?", (address, canary.port))
    expected = 2 * len(host_addresses())
    deadline = time.monotonic() + 5
    while len(canary.touched) < expected:
        if time.monotonic() > deadline:
            raise StartError(
                "this machine cannot reach its own test service, so that nothing could be proven",
                hint="look for a firewall rule on connections of this machine to itself",
            )
        time.sleep(0.005)
    canary.touched.clear()


def _make_certificates(hosts: Sequence[str], bundle: Path, chain: Path) -> None:
    """A CA and a leaf for `hosts`, as PEM files: the CA's certificate, the leaf with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    ca_key, leaf_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Moat demo origin CA")])
    key_id = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    ca = (
        _certificate(ca_name, ca_name, ca_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_id, critical=False)
        .sign(ca_key, _sha256())
    )
    leaf = (
        _certificate(ca_name, x509.Name([]), leaf_key)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(h) for h in hosts]), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id), critical=False)
        .sign(ca_key, _sha256())
    )
    pem = serialization.Encoding.PEM
    key = leaf_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_private(bundle, ca.public_bytes(pem))
    write_private(chain, key + leaf.public_bytes(pem))


def _certificate(issuer: Any, subject: Any, key: EllipticCurvePrivateKey) -> CertificateBuilder:
    from cryptography import x509

    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))  # clocks differ
        .not_valid_after(now + dt.timedelta(hours=1))
    )


def _sha256() -> Any:
    from cryptography.hazmat.primitives import hashes

    return hashes.SHA256()
