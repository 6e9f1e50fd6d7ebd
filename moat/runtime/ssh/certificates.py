"""Host certificates (PROTOCOL.certkeys of OpenSSH): which host key an authority of known_hosts vouches for.

The checks are those that ssh itself makes, and one more: an authority must not sign with SHA-1.
"""

from __future__ import annotations

import base64
import fnmatch
from collections.abc import Collection
from typing import TYPE_CHECKING

from moat.sshwire import WireError, key_type

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.serialization import SSHCertificate
    from cryptography.hazmat.primitives.serialization.ssh import SSHCertPublicKeyTypes

SUFFIX = "-cert-v01@openssh.com"


def certified(
    blob: bytes, *, name: str, authorities: Collection[bytes], revoked: Collection[bytes], now: float
) -> bytes | None:
    """The plain key of the host `name` in the certificate `blob`; None when nothing vouches for it now."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    try:
        certificate = _read(blob)
        certificate.verify_cert_signature()
        key, authority = _plain(certificate.public_key()), _plain(certificate.signature_key())
        good = (
            _is_for(certificate, name, now)
            and authority in authorities
            and not {key, authority, blob} & set(revoked)
        )
    except (InvalidSignature, UnsupportedAlgorithm, WireError, ValueError, TypeError):
        return None
    return key if good else None


def _read(blob: bytes) -> SSHCertificate:
    from cryptography.hazmat.primitives.serialization import SSHCertificate, load_ssh_public_identity

    kind = key_type(blob)
    if not kind.endswith(SUFFIX):
        raise WireError("no certificate")
    found = load_ssh_public_identity(kind.encode() + b" " + base64.b64encode(blob))
    if not isinstance(found, SSHCertificate):
        raise WireError("no certificate")
    return found


def _is_for(certificate: SSHCertificate, name: str, now: float) -> bool:
    """Whether it is a host's, this very host's, in its time, without conditions that nobody here knows."""
    from cryptography.hazmat.primitives.serialization import SSHCertificateType

    names = [principal.decode("utf-8", "replace").lower() for principal in certificate.valid_principals]
    return (
        certificate.type is SSHCertificateType.HOST
        and any(fnmatch.fnmatchcase(name, _glob(pattern)) for pattern in names)  # no name is not every name
        and certificate.valid_after <= now < certificate.valid_before
        and not certificate.critical_options
    )


def _glob(pattern: str) -> str:
    """Only * and ? are special."""
    return pattern.replace("[", "[[]")


def _plain(key: SSHCertPublicKeyTypes) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return base64.b64decode(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1])
