"""What is written by hand is what the library would have written."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from moat.proxy.selfsigned import ca_certificate

BOUNDS = (
    (x509.NameConstraints([x509.DNSName("localhost")], [x509.IPAddress(ipaddress.ip_network("::/0"))]), True),
    (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
)
EAST = dt.timezone(dt.timedelta(hours=9))


def by_the_library(
    key: ec.EllipticCurvePrivateKey,
    name: str,
    valid: tuple[dt.datetime, dt.datetime],
    bounds: Sequence[tuple[x509.ExtensionType, bool]],
    serial: int,
) -> x509.Certificate:
    subject = x509.Name([
        x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Moat"),
        x509.NameAttribute(x509.NameOID.COMMON_NAME, name),
    ])  # fmt: skip
    usage = dict.fromkeys(
        (
            "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
            "key_agreement", "encipher_only", "decipher_only",
        ),
        False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    for extension, critical in bounds:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(key, hashes.SHA256())


@pytest.mark.parametrize("bounds", [(), BOUNDS], ids=["run", "endpoints"])
@pytest.mark.parametrize("name", ["Moat run_0123456789ab", "ü" * 32], ids=["usual", "long"])
@pytest.mark.parametrize(
    "valid",
    [
        (dt.datetime(2025, 11, 27, 6, 7, 8, tzinfo=dt.UTC), dt.datetime(2026, 2, 1, tzinfo=dt.UTC)),
        (dt.datetime(2049, 12, 31, 23, 59, 59, tzinfo=dt.UTC), dt.datetime(2050, 1, 1, tzinfo=dt.UTC)),
        (dt.datetime(2026, 1, 1, 3, tzinfo=EAST), dt.datetime(2050, 1, 1, 3, tzinfo=EAST)),
    ],
    ids=["now", "2050", "zone"],
)
def test_every_byte_that_is_signed_is_the_librarys(
    name: str,
    valid: tuple[dt.datetime, dt.datetime],
    bounds: tuple[tuple[x509.ExtensionType, bool], ...],
) -> None:
    for _ in range(50):  # serial numbers of every length
        key = ec.generate_private_key(ec.SECP256R1())
        made = x509.load_der_x509_certificate(ca_certificate(key, name, valid, *bounds))
        expected = by_the_library(key, name, valid, bounds, made.serial_number)
        assert made.tbs_certificate_bytes == expected.tbs_certificate_bytes
        assert made.signature_algorithm_oid == expected.signature_algorithm_oid
        made.verify_directly_issued_by(made)


def test_serial_numbers_are_random() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    made = [x509.load_der_x509_certificate(ca_certificate(key, "x", (now, now))) for _ in range(20)]
    numbers = {certificate.serial_number for certificate in made}
    assert len(numbers) == 20
    assert max(numbers).bit_length() > 150
