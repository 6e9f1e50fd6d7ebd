"""Certificates of CAs, as DER and without `cryptography.x509`, which is 25 ms of every start.

RFC 5280 §4.1; the suite holds what is written here equal to what the library would write, byte for byte.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from moat.proxy.der import (
    BITS,
    BOOLEAN,
    EXTENSIONS,
    OCTETS,
    SEQUENCE,
    VERSION,
    attribute,
    extension,
    integer,
    oid,
    time,
    tlv,
)

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

_ORGANIZATION, COMMON_NAME = "2.5.4.10", "2.5.4.3"
KEY_IDENTIFIER, KEY_USAGE, BASIC_CONSTRAINTS = "2.5.29.14", "2.5.29.15", "2.5.29.19"
_ALGORITHM = tlv(SEQUENCE, oid("1.2.840.10045.4.3.2"))  # ECDSA with SHA-256
EC_ON_P256 = tlv(SEQUENCE, oid("1.2.840.10045.2.1"), oid("1.2.840.10045.3.1.7"))

Valid = tuple[dt.datetime, dt.datetime]


def ca_certificate(
    key: ec.EllipticCurvePrivateKey, name: str, valid: Valid, *bounds: tuple[x509.ExtensionType, bool]
) -> bytes:
    """A self-signed CA certificate for a P-256 key.

    `bounds` are further extensions, each with whether it is critical.
    """
    subject = tlv(SEQUENCE, attribute(_ORGANIZATION, "Moat"), attribute(COMMON_NAME, name))
    public = point(key)
    signs_certificates_and_crls = b"\x01\x06"  # one unused bit, then bits 5 and 6
    extensions = [
        extension(BASIC_CONSTRAINTS, tlv(SEQUENCE, tlv(BOOLEAN, b"\xff"), integer(0)), critical=True),
        extension(KEY_USAGE, tlv(BITS, signs_certificates_and_crls), critical=True),
        extension(KEY_IDENTIFIER, tlv(OCTETS, key_identifier(public)), critical=False),
        *(extension(e.oid.dotted_string, e.public_bytes(), critical=critical) for e, critical in bounds),
    ]
    return signed(key, issuer=subject, valid=valid, subject=subject, public=public, extensions=extensions)


def signed(
    signer: ec.EllipticCurvePrivateKey,
    *,
    issuer: bytes,
    valid: Valid,
    subject: bytes,
    public: bytes,
    extensions: Sequence[bytes],
) -> bytes:
    """A certificate for the P-256 key with the point `public`; names and extensions are DER."""
    content = tlv(
        SEQUENCE,
        tlv(VERSION, integer(2)),  # X.509v3
        integer(int.from_bytes(os.urandom(20), "big") >> 1),  # positive, in 20 bytes: RFC 5280 §4.1.2.2
        _ALGORITHM,
        issuer,
        tlv(SEQUENCE, *map(time, valid)),
        subject,
        tlv(SEQUENCE, EC_ON_P256, tlv(BITS, b"\0", public)),
        tlv(EXTENSIONS, tlv(SEQUENCE, *extensions)),
    )
    signature = signer.sign(content, _ecdsa_sha256())
    return tlv(SEQUENCE, content, _ALGORITHM, tlv(BITS, b"\0", signature))


@cache
def _ecdsa_sha256() -> ec.ECDSA:
    """`ECDSA(SHA256())`, whose own `__init__` imports all ciphers of the library: 12 ms, for any kind."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    class EcdsaSha256(ec.ECDSA):
        algorithm = hashes.SHA256()
        deterministic_signing = False

        def __init__(self) -> None: ...

    return EcdsaSha256()


def point(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Of the public key, uncompressed (SEC 1 §2.3.3)."""
    public = key.public_key().public_numbers()
    return b"\x04" + public.x.to_bytes(32, "big") + public.y.to_bytes(32, "big")


def key_identifier(public: bytes) -> bytes:
    """RFC 5280 §4.2.1.2, the first method."""
    return hashlib.sha1(public, usedforsecurity=False).digest()
