"""Addresses and authorities: what may be dialled, and one canonical spelling of `host:port`.

Pure text and numbers; nothing here resolves a name.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from moat.errors import MoatError


class AuthorityError(MoatError):
    """A host or `host:port` that is not in the one spelling that everybody reads alike."""


@dataclass(frozen=True, slots=True, order=True)
class Authority:
    """Host and port in canonical form: lower-case A-labels without trailing dot, or an IP literal."""

    host: str  # `api.github.com`, `192.0.2.1`, `2001:db8::1` (no brackets)
    port: int

    @property
    def address(self) -> IPv4Address | IPv6Address | None:
        """The address when the host is a literal."""
        raise NotImplementedError

    def host_header(self, scheme: str) -> str:
        """Value of a Host field: the port only when it is not the scheme's own."""
        raise NotImplementedError

    def __str__(self) -> str:
        raise NotImplementedError


def parse_authority(text: str | bytes, *, default_port: int | None = None) -> Authority:
    """Read `host:port`, `[v6]:port`, or without port when `default_port` is given.

    Raises AuthorityError for userinfo, zone ids, decimal/hex/octal/short IPv4, bad labels, bad ports.
    """
    raise NotImplementedError


def refuse(address: str | IPv4Address | IPv6Address) -> str | None:
    """Why this address must not be dialled (`loopback`, `private`, `cloud metadata`…), or None.

    Everything that is not globally routable unicast is refused; IPv4 inside IPv6 (mapped, compatible,
    6to4, NAT64, Teredo) is judged by the IPv4 address too. Text that is no address is refused as well.
    """
    raise NotImplementedError
