"""Addresses that may be dialled, and why others may not. Pure numbers; nothing here resolves a name."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

# IANA special-purpose registries, read 2026; kept here since `ipaddress.is_global` changes between versions.
_IPV4 = tuple(
    (IPv4Network(network), reason)
    for network, reason in (
        ("169.254.169.254/32", "cloud metadata"),
        ("168.63.129.16/32", "cloud metadata"),  # Azure: public number, answered by the hypervisor
        ("100.100.100.200/32", "cloud metadata"),  # Alibaba
        ("192.0.0.192/32", "cloud metadata"),  # Oracle
        ("0.0.0.0/8", "this network"),  # 0.0.0.0 connects to loopback on Linux
        ("127.0.0.0/8", "loopback"),
        ("10.0.0.0/8", "private"),
        ("172.16.0.0/12", "private"),
        ("192.168.0.0/16", "private"),
        ("100.64.0.0/10", "carrier-grade NAT"),
        ("169.254.0.0/16", "link-local"),
        ("192.0.0.0/24", "protocol assignments"),
        ("192.0.2.0/24", "documentation"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("192.88.99.0/24", "6to4 relay"),
        ("198.18.0.0/15", "benchmarking"),
        ("224.0.0.0/4", "multicast"),
        ("255.255.255.255/32", "broadcast"),
        ("240.0.0.0/4", "reserved"),
    )
)
_IPV6 = tuple(
    (IPv6Network(network), reason)
    for network, reason in (
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::/96", "IPv4-compatible"),
        ("fd00:ec2::254/128", "cloud metadata"),  # AWS
        ("fd20:ce::254/128", "cloud metadata"),  # Google
        ("fc00::/7", "unique local"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
        ("64:ff9b:1::/48", "local NAT64"),
        ("100::/64", "discard"),
        ("2001::/32", "Teredo"),
        ("2001::/23", "protocol assignments"),  # benchmarking and ORCHID among them
        ("2001:db8::/32", "documentation"),
        ("3fff::/20", "documentation"),
        ("2002::/16", "6to4"),
    )
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")


def refuse(address: str | IPv4Address | IPv6Address) -> str | None:
    """Why this address must not be dialled (`loopback`, `private`, `cloud metadata`…), or None.

    Everything that is not globally routable unicast is refused. IPv4-mapped and NAT64 addresses are judged
    by the IPv4 address inside; IPv4-compatible, 6to4 and Teredo are refused whatever is inside, which the
    reason names when it is worse. Text that is no address, or has a zone id, is refused as well.
    """
    if isinstance(address, str):
        try:
            address = ip_address(address)
        except ValueError:
            return "not an IP address"
    if isinstance(address, IPv4Address):
        return _find(address, _IPV4)
    if address.scope_id is not None:
        return "zone id"
    if address.ipv4_mapped:
        return refuse(address.ipv4_mapped)
    inner = _inner(address)
    inside = next(filter(None, map(refuse, inner)), None)
    if address in _NAT64:
        return inside and f"NAT64 of {inside}"
    reason = _find(address, _IPV6)
    if reason is None:
        return None if address in _GLOBAL_UNICAST else "not global unicast"
    return f"{reason} of {inside}" if inside else reason


def _find(
    address: IPv4Address | IPv6Address, table: tuple[tuple[IPv4Network | IPv6Network, str], ...]
) -> str | None:
    return next((reason for network, reason in table if address in network), None)


def _inner(address: IPv6Address) -> tuple[IPv4Address, ...]:
    """IPv4 addresses that a transition mechanism would send this to."""
    if address.teredo:
        return address.teredo
    if address.sixtofour:
        return (address.sixtofour,)
    number = int(address)
    if address in _NAT64 or (number >> 32 == 0 and number > 1):
        return (IPv4Address(number & 0xFFFF_FFFF),)
    return ()
