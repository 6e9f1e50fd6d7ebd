"""Certificate authorities: leafs for hosts on demand, and the run's own CA, in memory and short-lived.

Server contexts and their SNI; what certificates say is in `leaf` and `selfsigned`. `cryptography` is imported
inside functions: this module is loaded by the proxy's signatures long before a certificate is needed.
"""

from __future__ import annotations

import datetime as dt
import os
import ssl
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakKeyDictionary

from moat.authority import AuthorityError, split_host_port
from moat.dataclass import dataclass
from moat.proxy.leaf import MOST_OF_A_NAME, LeafWriter
from moat.proxy.selfsigned import ca_certificate
from moat.proxy.tls import H2, HTTP1

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

_CA_LIFE = dt.timedelta(days=90)  # longer than any run; the key dies with the run anyway
_LEAF_LIFE = dt.timedelta(days=14)  # far below the 199 days that verifiers accept
_RENEW_BEFORE = dt.timedelta(days=7)  # a leaf handed out is still good for a week-long connection
_BACKDATE = dt.timedelta(days=2)  # clocks of suspended VMs and containers lag behind
_CA_BACKDATE = dt.timedelta(days=365)  # a wrong clock may be put right while the run goes on
_CACHE = 256  # contexts of ~40 KiB; a crawling agent must not grow the supervisor

Connection = ssl.SSLObject | ssl.SSLSocket


def _utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@dataclass(frozen=True, slots=True)
class _Leaf:
    context: ssl.SSLContext
    made_at: dt.datetime
    renew_at: dt.datetime


class Issuer:
    """Issues the leafs of one CA and keeps their server contexts.

    All leaves share one key: a P-256 key costs little, but loading one more per host would not.
    """

    protocols: ClassVar[tuple[str, ...]] = (HTTP1,)  # that its servers speak, the preferred one first

    def __init__(
        self,
        key: ec.EllipticCurvePrivateKey,
        certificate: bytes,
        now: Callable[[], dt.datetime] = _utc_now,
    ) -> None:
        """`key` is the CA's, whose certificate is DER; `now` is the clock, in UTC."""
        from cryptography.hazmat.primitives.asymmetric import ec

        self._certificate = certificate
        self._now = now
        self._writer = LeafWriter(key, certificate, ec.generate_private_key(ec.SECP256R1()))
        self._key_pem = self._writer.key_pem()
        self._leaves: OrderedDict[str, _Leaf] = OrderedDict()
        self._rejected: WeakKeyDictionary[Connection, str] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._leaves)} leaves>"

    @property
    def certificate_pem(self) -> bytes:
        """The CA certificate: what the sandbox has to trust."""
        return ssl.DER_cert_to_PEM_cert(self._certificate).encode("ascii")

    def server_context(self, host: str) -> ssl.SSLContext:
        """The context that terminates TLS for `host` (canonical name or IP literal), cached, capped.

        A ClientHello whose SNI is another name gets the `unrecognized_name` alert; no SNI is accepted.
        Cost when not cached: about 1.2 ms.
        """
        leaf = self._leaves.get(host)
        if leaf is None or not leaf.made_at <= self._now() < leaf.renew_at:  # clocks jump back as well
            leaf = self._leaves[host] = self._new_leaf(host)
        self._leaves.move_to_end(host)
        if len(self._leaves) > _CACHE:
            self._leaves.popitem(last=False)
        return leaf.context

    def rejected_sni(self, connection: Connection) -> str | None:
        """The name that made this connection's handshake fail, for the denial that is recorded."""
        return self._rejected.get(connection)

    def _new_leaf(self, host: str) -> _Leaf:
        now = self._now()
        certificate = self._writer.certificate(host, (now - _BACKDATE, now + _LEAF_LIFE))
        pem = self._key_pem + ssl.DER_cert_to_PEM_cert(certificate).encode("ascii")
        context = _server_context(pem, self.protocols)
        context.sni_callback = self._sni_check(host)
        return _Leaf(context, now, now + _LEAF_LIFE - _RENEW_BEFORE)

    def _sni_check(self, host: str) -> Callable[[Connection, str | None, ssl.SSLContext], int | None]:
        """One authority: what the client names in TLS is what it named in CONNECT, or there is no TLS."""

        def check(connection: Connection, name: str | None, _context: ssl.SSLContext) -> int | None:
            if name is None or _same_host(name, host):
                return None
            self._rejected[connection] = name
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

        return check


class RunCA(Issuer):
    """CA of one run. Its key exists in this process's memory only and dies with it."""

    protocols = (H2, HTTP1)

    @classmethod
    def generate(cls, name: str, *, now: Callable[[], dt.datetime] = _utc_now) -> RunCA:
        """A fresh CA. `name` (the run id) shows up in its subject; `now` is the clock, in UTC."""
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        valid = now() - _CA_BACKDATE, now() + _CA_LIFE
        return cls(key, ca_certificate(key, f"Moat {name}"[:MOST_OF_A_NAME], valid), now)


def _same_host(name: str, host: str) -> bool:
    """An IPv6 literal as SNI, against the RFC, comes without brackets and is compared as it is."""
    if name == host:
        return True
    try:
        return split_host_port(name) == (host, None)
    except AuthorityError:
        return False


def _server_context(pem: bytes, protocols: tuple[str, ...]) -> ssl.SSLContext:
    """A server context for a key and certificate that `ssl` can only read from a file: one in memory."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(list(protocols))
    context.num_tickets = 1  # each costs a record on every handshake; clients use one
    descriptor = os.memfd_create("moat-leaf")
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context
