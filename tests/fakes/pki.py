"""A certificate authority and one server certificate, for TLS servers of the suite."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

# What an authority's key is for; Python 3.13 and later ask for it.
_SIGNS = x509.KeyUsage(
    key_cert_sign=True, crl_sign=True, digital_signature=False, content_commitment=False, key_encipherment=False,
    data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
)  # fmt: skip


def make_pki(
    directory: Path, names: Sequence[str], *, ca_name: str = "stand-in API CA", bare: bool = False
) -> tuple[Path, Path]:
    """Write `ca.pem` and `server.pem` (key and certificate for `names`); returns their paths.

    A CA that is still there is not kept: its key never touches the disk. `bare`: without key identifiers,
    and with basic constraints that are not critical, as the authorities of some company proxies are.
    """
    ca_key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ca_name)])
    key = ec.generate_private_key(ec.SECP256R1())
    authority = _builder(issuer, issuer, ca_key).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=not bare
    )
    leaf = _builder(x509.Name([]), issuer, key).add_extension(
        x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=True
    )
    if not bare:
        public = ca_key.public_key()
        authority = authority.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        authority = authority.add_extension(_SIGNS, critical=True)
        leaf = leaf.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
    ca, server = (builder.sign(ca_key, hashes.SHA256()) for builder in (authority, leaf))
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    ca_file, server_file = directory / "ca.pem", directory / "server.pem"
    ca_file.write_bytes(ca.public_bytes(pem))
    server_file.unlink(missing_ok=True)
    with os.fdopen(os.open(server_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret + server.public_bytes(pem))
    return ca_file, server_file


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=30))
    )
