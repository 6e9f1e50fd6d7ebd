"""Certificates of hosts, as DER: a template that a CA's certificate and the leafs' key are filled into once.

By `cryptography.x509` one takes five times as long, and 25 ms more for the first connection of every run. The
suite holds what is written here equal to what the library would write, byte for byte.
"""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING

from moat.authority import literal
from moat.proxy.der import (
    BITS,
    OCTETS,
    SEQUENCE,
    Element,
    attribute,
    elements,
    extension,
    integer,
    moment,
    oid,
    tlv,
)
from moat.proxy.selfsigned import (
    BASIC_CONSTRAINTS,
    COMMON_NAME,
    EC_ON_P256,
    KEY_IDENTIFIER,
    KEY_USAGE,
    Valid,
    key_identifier,
    point,
    signed,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

MOST_OF_A_NAME = 64  # ub-common-name, RFC 5280 appendix A
_ALTERNATIVE_NAME, _AUTHORITY_KEY, _EXTENDED_USAGE = "2.5.29.17", "2.5.29.35", "2.5.29.37"
_SERVER = "1.3.6.1.5.5.7.3.1"
_DNS_NAME, _ADDRESS, _KEY_ID, _PUBLIC_KEY = 0x82, 0x87, 0x80, 0xA1  # context-specific tags
_SIGNS = b"\x07\x80"  # digitalSignature and nothing else: seven unused bits, then bit 0
_ISSUER, _VALIDITY, _EXTENSIONS = 3, 4, 7  # in what is signed of a v3 certificate


class LeafWriter:
    """Writes the leafs of one CA, which all have one key."""

    def __init__(
        self, signer: ec.EllipticCurvePrivateKey, certificate: bytes, key: ec.EllipticCurvePrivateKey
    ) -> None:
        """`signer` is the key of the CA, which has signed its own `certificate` (DER)."""
        (whole,) = elements(certificate)
        parts = list(elements(next(elements(whole.content)).content))
        self._signer = signer
        self._issuer = parts[_ISSUER].whole
        self._until = moment(list(elements(parts[_VALIDITY].content))[1])
        self._public = point(key)
        self._key = key
        identifier = key_identifier(self._public)
        self._after_name = (
            extension(BASIC_CONSTRAINTS, tlv(SEQUENCE), critical=True),
            extension(KEY_USAGE, tlv(BITS, _SIGNS), critical=True),
            extension(_EXTENDED_USAGE, tlv(SEQUENCE, oid(_SERVER)), critical=False),
            extension(KEY_IDENTIFIER, tlv(OCTETS, identifier), critical=False),
            # Byte for byte the issuer's identifier: some verifiers compare it (RFC 5280 §4.2.1.1).
            extension(
                _AUTHORITY_KEY, tlv(SEQUENCE, tlv(_KEY_ID, _identifier(parts[_EXTENSIONS]))), critical=False
            ),
        )

    def certificate(self, host: str, valid: Valid) -> bytes:
        """For a canonical name or address; not beyond the end of the CA's own."""
        address = literal(host)
        name = tlv(_ADDRESS, address.packed) if address else tlv(_DNS_NAME, host.encode("ascii"))
        # A common name is not needed and has 64 characters; without it the alternative name must be critical.
        named = len(host) <= MOST_OF_A_NAME
        return signed(
            self._signer,
            issuer=self._issuer,
            valid=(valid[0], min(valid[1], self._until)),
            subject=tlv(SEQUENCE, attribute(COMMON_NAME, host)) if named else tlv(SEQUENCE),
            public=self._public,
            extensions=[
                extension(_ALTERNATIVE_NAME, tlv(SEQUENCE, name), critical=not named),
                *self._after_name,
            ],
        )

    def key_pem(self) -> bytes:
        """The leafs' key, as PKCS #8 (RFC 5208, RFC 5915): the library takes 10 ms to import for it."""
        private = self._key.private_numbers().private_value.to_bytes(32, "big")
        public = tlv(_PUBLIC_KEY, tlv(BITS, b"\0", self._public))
        der = tlv(
            SEQUENCE,
            integer(0),
            EC_ON_P256,
            tlv(OCTETS, tlv(SEQUENCE, integer(1), tlv(OCTETS, private), public)),
        )
        text = b64encode(der)
        lines = [text[start : start + 64] for start in range(0, len(text), 64)]
        return b"\n".join((b"-----BEGIN PRIVATE KEY-----", *lines, b"-----END PRIVATE KEY-----", b""))


def _identifier(extensions: Element) -> bytes:
    """The subject key identifier, which every CA of ours has. Raises StopIteration without one."""
    (listed,) = elements(extensions.content)
    kind = oid(KEY_IDENTIFIER)
    value = next(each.content for each in elements(listed.content) if each.content.startswith(kind))
    *_, octets = elements(value)
    (identifier,) = elements(octets.content)
    return identifier.content
