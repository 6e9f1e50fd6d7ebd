"""The CA of endpoints: the one certificate of Moat that a user may trust on the host.

`~/.moat/endpoints/ca.crt` and `ca.key` (0600). Its key lies on the disk, so what it can sign is bounded by
the certificate itself: names below `localhost` and no address, for servers only. Whoever stole the key could
deceive this machine about itself and about nothing else. It has nothing to do with the CAs of runs.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from moat.errors import MoatError
from moat.paths import Home, locked, write_private
from moat.proxy.certs import Connection, Issuer
from moat.proxy.selfsigned import ca_certificate
from moat.runtime.endpoints.names import DOMAIN, parse_name

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

_LIFE = dt.timedelta(days=3650)  # renewing means trusting anew by hand
_BACKDATE = dt.timedelta(days=2)


def certificate_path(home: Home) -> Path:
    return home.endpoints / "ca.crt"


def name_of(certificate: bytes) -> str:
    """The common name of a PEM certificate: how trust stores list it, unique to this installation."""
    from cryptography import x509

    subject = x509.load_pem_x509_certificate(certificate).subject
    return str(subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)


def ensure(home: Home) -> bytes:
    """The certificate (PEM), made when there is none. Raises MoatError when it cannot be used."""
    key_path = home.endpoints / "ca.key"
    with locked(home.endpoints / "ca.lock"):
        if not key_path.exists() or not certificate_path(home).exists():
            _make(key_path, certificate_path(home))
        return certificate_path(home).read_bytes()


def _make(key_path: Path, path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    certificate = build_certificate(key, f"Moat endpoints {os.urandom(4).hex()}")
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(key_path, pem)
    write_private(path, ssl.DER_cert_to_PEM_cert(certificate).encode())


def build_certificate(key: ec.EllipticCurvePrivateKey, name: str) -> bytes:
    """A self-signed CA certificate (DER) that is good for `localhost` and what is below it."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    now = dt.datetime.now(dt.UTC)
    # A constraint speaks only of its own kind of name: addresses have to be excluded by themselves.
    everywhere = [x509.IPAddress(ipaddress.ip_network(net)) for net in ("0.0.0.0/0", "::/0")]
    return ca_certificate(
        key,
        name,
        (now - _BACKDATE, now + _LIFE),
        (x509.NameConstraints([x509.DNSName(DOMAIN)], everywhere), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
    )


class EndpointTLS:
    """Server contexts for every name below `localhost`, chosen by SNI."""

    def __init__(self, home: Home) -> None:
        """Makes the CA when there is none. Raises MoatError, OSError."""
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        certificate = ensure(home)
        path = home.endpoints / "ca.key"
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), None)
            parsed = x509.load_pem_x509_certificate(certificate)
        except ValueError as error:
            raise _broken(home, str(error)) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != parsed.public_key():
            raise _broken(home, "key and certificate do not belong together")
        self._issuer = Issuer(key, parsed.public_bytes(serialization.Encoding.DER))
        self._names: WeakKeyDictionary[Connection, str] = WeakKeyDictionary()

    def context(self) -> ssl.SSLContext:
        """The context of a new connection. A foreign server name gets no certificate, only an alert."""
        front = self._issuer.server_context(DOMAIN)
        front.sni_callback = self._choose
        return front

    def name(self, connection: Connection) -> str | None:
        """The server name that the client gave; None: it gave none."""
        return self._names.get(connection)

    def _choose(self, connection: Connection, name: str | None, _front: ssl.SSLContext) -> int | None:
        if name is None:
            return None
        place = parse_name(name)
        if place is None:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        self._names[connection] = place.host
        if place.run is not None:
            connection.context = self._issuer.server_context(place.host)
        return None


def _broken(home: Home, why: str) -> MoatError:
    return MoatError(
        f"the CA of endpoints in {home.endpoints} cannot be used: {why}",
        hint="`moat trust remove`, delete ca.crt and ca.key there, and trust the new one",
    )
