"""What is written by hand is what the library would have written."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from moat.authority import literal
from moat.proxy.leaf import LeafWriter
from moat.proxy.selfsigned import ca_certificate
from moat.runtime.endpoints.ca import build_certificate

HOSTS = (
    "api.example",
    "moat-host",
    "a",
    "a" * 60 + ".net",
    ".".join(["a" * 60, "test"]),
    ".".join(["a" * 60] * 4),
    "192.0.2.1",
    "2001:db8::1",
)
NOW = dt.datetime(2026, 11, 27, 6, 7, 8, 999_999, tzinfo=dt.UTC)
Valid = tuple[dt.datetime, dt.datetime]


def by_the_library(
    signer: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    host: str,
    *,
    valid: Valid,
    serial: int,
) -> x509.Certificate:
    address, named = literal(host), len(host) <= 64
    subject = [x509.NameAttribute(x509.NameOID.COMMON_NAME, host)] if named else []
    usage = dict.fromkeys(
        (
            "key_cert_sign", "crl_sign", "content_commitment", "key_encipherment", "data_encipherment",
            "key_agreement", "encipher_only", "decipher_only",
        ),
        False,
    )  # fmt: skip
    issuer = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    name = x509.IPAddress(address) if address else x509.DNSName(host)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(valid[0])
        .not_valid_after(min(valid[1], ca.not_valid_after_utc))
        .add_extension(x509.SubjectAlternativeName([name]), critical=not named)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
        .sign(signer, hashes.SHA256())
    )


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("kind", ["run", "endpoints", "until 2051", "ends first"])
def test_every_byte_that_is_signed_is_the_librarys(host: str, kind: str) -> None:
    until = NOW + dt.timedelta(days=2 if kind == "ends first" else 90)
    if kind == "until 2051":
        until = dt.datetime(2051, 1, 1, tzinfo=dt.UTC)
    for _ in range(20):  # serial numbers of every length
        signer, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        certificate = (
            build_certificate(signer, "Moat endpoints 01234567")
            if kind == "endpoints"
            else ca_certificate(signer, "Moat run_0123456789ab", (NOW - dt.timedelta(days=365), until))
        )
        ca = x509.load_der_x509_certificate(certificate)
        valid = NOW - dt.timedelta(days=2), NOW + dt.timedelta(days=14 if kind != "until 2051" else 9999)
        made = x509.load_der_x509_certificate(LeafWriter(signer, certificate, key).certificate(host, valid))
        expected = by_the_library(signer, ca, key, host, valid=valid, serial=made.serial_number)
        assert made.tbs_certificate_bytes == expected.tbs_certificate_bytes
        assert made.signature_algorithm_oid == expected.signature_algorithm_oid
        made.verify_directly_issued_by(ca)


def test_the_key_is_written_as_the_library_writes_it() -> None:
    for _ in range(50):
        key = ec.generate_private_key(ec.SECP256R1())
        ca = ca_certificate(key, "x", (NOW, NOW))
        assert LeafWriter(key, ca, key).key_pem() == key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def test_serial_numbers_are_random() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    ca = ca_certificate(key, "x", (NOW, NOW))
    writer = LeafWriter(key, ca, key)
    made = [x509.load_der_x509_certificate(writer.certificate("a.test", (NOW, NOW))) for _ in range(20)]
    numbers = {certificate.serial_number for certificate in made}
    assert len(numbers) == 20
    assert max(numbers).bit_length() > 150


def test_the_first_connection_does_not_wait_for_the_library() -> None:
    """To import it is longer than all else that the first connection waits for."""
    code = "import sys; from moat.proxy.certs import RunCA; RunCA.generate('x').server_context('a.test'); "
    code += "print([name for name in sys.modules if name.startswith('cryptography.x509')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
