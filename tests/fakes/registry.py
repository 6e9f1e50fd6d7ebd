"""A registry of container images: the distribution's own, and a token service that signs what it sells."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from tests.vault.vendor import Answer, Asked

ISSUER, SERVICE = "tokens of the tests", "registry of the tests"
CONFIG = """\
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {root}}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}", secret: x, tls: {{certificate: {pem}, key: {pem}}}}}
auth:
  token: {{realm: "{realm}", service: "{service}", issuer: "{issuer}", rootcertbundle: {roots}}}
"""


@dataclass
class TokenService:
    """Sells tokens to one user, who may do everything below `acme/`: for the password, or an identity token."""

    username: str
    password: str
    identity: str = ""
    sold: list[tuple[list[str], str]] = field(default_factory=list)  # (scopes asked for, token)
    life: int = 300

    def __post_init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ISSUER)])
        now = dt.datetime.now(dt.UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .sign(self._key, hashes.SHA256())
        )

    def __call__(self, asked: Asked) -> Answer:
        pair = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
        if asked.method == "POST":
            form = {name: value for name, (value,) in parse_qs(asked.body.decode()).items()}
            if (form["grant_type"], form["refresh_token"]) != ("refresh_token", self.identity):
                return 400, {"error": "invalid_grant"}
            assert (form["service"], bool(form["client_id"])) == (SERVICE, True)
            scopes, called = form.get("scope", "").split(), "access_token"
        else:
            if asked.headers.get("authorization") != f"Basic {pair}":
                return 401, {"errors": [{"code": "UNAUTHORIZED"}]}
            scopes, called = parse_qs(urlsplit(asked.path).query).get("scope", []), "token"
        token = self._token(scopes)
        self.sold.append((scopes, token))
        return 200, {called: token, "expires_in": self.life}

    def _token(self, scopes: list[str]) -> str:
        now = int(time.time())
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            if kind == "repository" and name.startswith("acme/"):
                access.append({"type": kind, "name": name, "actions": actions.split(",")})
        der = self.certificate.public_bytes(serialization.Encoding.DER)
        head = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(der).decode()]}
        claims = {
            "iss": ISSUER, "sub": self.username, "aud": SERVICE, "exp": now + self.life, "nbf": now - 60,
            "iat": now, "jti": f"{len(self.sold)}", "access": access,
        }  # fmt: skip
        signed = ".".join(_base64(json.dumps(part).encode()) for part in (head, claims))
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_base64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


@contextlib.contextmanager
def registry(directory: Path, tokens: TokenService, realm: str, pem: Path) -> Iterator[int]:
    """Run `docker-registry` on loopback, with the key and certificate of `pem`; its port."""
    directory.mkdir()
    roots, config = directory / "roots.pem", directory / "config.yml"
    roots.write_bytes(tokens.certificate.public_bytes(serialization.Encoding.PEM))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    config.write_text(
        CONFIG.format(
            root=directory / "data",
            port=port,
            pem=pem,
            realm=realm,
            roots=roots,
            service=SERVICE,
            issuer=ISSUER,
        )
    )
    with (directory / "log").open("wb") as log:
        server = subprocess.Popen(
            ["docker-registry", "serve", str(config)],
            stdout=log,
            stderr=log,
            env={"PATH": os.environ["PATH"]},
        )
    try:
        _wait_for(port, server, directory / "log")
        yield port
    finally:
        server.terminate()
        server.wait(10)


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        if server.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
