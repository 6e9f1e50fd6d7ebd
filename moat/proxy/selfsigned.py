"""Certificates of CAs, as DER and without `cryptography.x509`, which is 25 ms of every start.

Leafs are made by the library: there is time for it when the first connection comes. RFC 5280 §4.1; the suite
holds what is written here equal to what the library would write, byte for byte.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

_BOOLEAN, _INTEGER, _BITS, _OCTETS, _OID, _UTF8, _UTC_TIME, _TIME = 1, 2, 3, 4, 6, 12, 23, 24
_SEQUENCE, _SET, _VERSION, _EXTENSIONS = 0x30, 0x31, 0xA0, 0xA3  # constructed
_ORGANIZATION, _COMMON_NAME = "2.5.4.10", "2.5.4.3"
_KEY_IDENTIFIER, _KEY_USAGE, _BASIC_CONSTRAINTS = "2.5.29.14", "2.5.29.15", "2.5.29.19"
_EC_KEY, _P256 = "1.2.840.10045.2.1", "1.2.840.10045.3.1.7"
_ECDSA_SHA256 = "1.2.840.10045.4.3.2"
_GENERAL_FROM = 2050  # the year from which UTCTime is ambiguous


def ca_certificate(
    key: ec.EllipticCurvePrivateKey,
    name: str,
    valid: tuple[dt.datetime, dt.datetime],
    *bounds: tuple[x509.ExtensionType, bool],
) -> bytes:
    """A self-signed CA certificate for a P-256 key.

    `bounds` are further extensions, each with whether it is critical.
    """
    subject = _tlv(_SEQUENCE, _attribute(_ORGANIZATION, "Moat"), _attribute(_COMMON_NAME, name))
    point = _point(key.public_key().public_numbers())
    identifier = hashlib.sha1(point, usedforsecurity=False).digest()
    signs_certificates_and_crls = b"\x01\x06"  # one unused bit, then bits 5 and 6
    extensions = [
        _extension(_BASIC_CONSTRAINTS, _tlv(_SEQUENCE, _tlv(_BOOLEAN, b"\xff"), _integer(0)), critical=True),
        _extension(_KEY_USAGE, _tlv(_BITS, signs_certificates_and_crls), critical=True),
        _extension(_KEY_IDENTIFIER, _tlv(_OCTETS, identifier), critical=False),
        *(_extension(e.oid.dotted_string, e.public_bytes(), critical=critical) for e, critical in bounds),
    ]
    algorithm = _tlv(_SEQUENCE, _oid(_ECDSA_SHA256))
    signed = _tlv(
        _SEQUENCE,
        _tlv(_VERSION, _integer(2)),  # X.509v3
        _integer(int.from_bytes(os.urandom(20), "big") >> 1),  # positive, in 20 bytes: RFC 5280 §4.1.2.2
        algorithm,
        subject,
        _tlv(_SEQUENCE, *map(_time, valid)),
        subject,
        _tlv(_SEQUENCE, _tlv(_SEQUENCE, _oid(_EC_KEY), _oid(_P256)), _tlv(_BITS, b"\0", point)),
        _tlv(_EXTENSIONS, _tlv(_SEQUENCE, *extensions)),
    )
    signature = key.sign(signed, _ecdsa_sha256())
    return _tlv(_SEQUENCE, signed, algorithm, _tlv(_BITS, b"\0", signature))


def _ecdsa_sha256() -> ec.ECDSA:
    """`ECDSA(SHA256())`, whose own `__init__` imports all ciphers of the library: 12 ms, for any kind."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    class EcdsaSha256(ec.ECDSA):
        algorithm = hashes.SHA256()
        deterministic_signing = False

        def __init__(self) -> None: ...

    return EcdsaSha256()


def _point(public: ec.EllipticCurvePublicNumbers) -> bytes:
    """Uncompressed (SEC 1 §2.3.3)."""
    return b"\x04" + public.x.to_bytes(32, "big") + public.y.to_bytes(32, "big")


def _tlv(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def _integer(value: int) -> bytes:
    return _tlv(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    return _tlv(_OID, *map(_base128, (40 * first + second, *rest)))


def _base128(number: int) -> bytes:
    digits = [number & 0x7F]
    while number := number >> 7:
        digits.append(0x80 | number & 0x7F)
    return bytes(reversed(digits))


def _attribute(kind: str, value: str) -> bytes:
    return _tlv(_SET, _tlv(_SEQUENCE, _oid(kind), _tlv(_UTF8, value.encode())))


def _time(moment: dt.datetime) -> bytes:
    moment = moment.astimezone(dt.UTC)
    if moment.year < _GENERAL_FROM:
        return _tlv(_UTC_TIME, moment.strftime("%y%m%d%H%M%SZ").encode())
    return _tlv(_TIME, moment.strftime("%Y%m%d%H%M%SZ").encode())


def _extension(kind: str, value: bytes, *, critical: bool) -> bytes:
    return _tlv(_SEQUENCE, _oid(kind), _tlv(_BOOLEAN, b"\xff") if critical else b"", _tlv(_OCTETS, value))
