"""One canonical spelling of `host:port`, for whoever compares hosts: rules, tunnels, certificates.

Pure text; nothing here resolves a name. Two spellings of one host would be two answers from policy, so every
spelling that some resolver understands and another does not is refused.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NoReturn

from moat.dataclass import dataclass
from moat.errors import MoatError
from moat.regex import regex

_LABEL = regex(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMERIC = regex(r"[0-9]+|0x[0-9a-f]*")  # a last label like this makes the host an IPv4 address (WHATWG)
_PORT = regex(r"[1-9][0-9]{0,4}")
_MAX_HOST = 253
_DEFAULT_PORTS = {"http": 80, "https": 443}


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
        return literal(self.host)

    def host_header(self, scheme: str) -> str:
        """Value of a Host field: the port only when it is not the scheme's own."""
        if self.port == _DEFAULT_PORTS.get(scheme):
            return f"[{self.host}]" if ":" in self.host else self.host
        return str(self)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_authority(text: str | bytes, *, default_port: int | None = None) -> Authority:
    """Read `host:port`, `[v6]:port`, or without port when `default_port` is given.

    Raises AuthorityError for userinfo, zone ids, decimal/hex/octal/short IPv4, bad labels, bad ports.
    An IPv4-mapped IPv6 literal becomes the IPv4 one: they reach the same host.
    """
    host, port = split_host_port(text)
    port = default_port if port is None else port
    if port is None:
        raise AuthorityError(f"{host!r} has no port")
    return Authority(host, port)


@lru_cache(maxsize=512)  # clients name few hosts, and each of them again and again
def split_host_port(text: str | bytes) -> tuple[str, int | None]:
    """Canonical host, and the port if there is one. Raises AuthorityError."""
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    if not text.isascii() or not text.isprintable() or " " in text:
        _refuse(text, "is not printable ASCII (write international names as A-labels, xn--…)")
    if "@" in text:
        _refuse(text, "has a user name in front of the host")
    if "%" in text:
        _refuse(text, "has a zone id or a percent-encoded byte in the host")
    if text.startswith("["):
        inside, bracket, after = text[1:].partition("]")
        if not bracket or (after and not after.startswith(":")):
            _refuse(text, "is not `[address]:port`")
        return _ipv6(inside, text), _port(after[1:], text) if after else None
    host, colon, port = text.partition(":")
    if ":" in port:
        _refuse(text, "has several colons (write IPv6 addresses in brackets)")
    return _host(host.lower(), text), _port(port, text) if colon else None


def literal(host: str) -> IPv4Address | IPv6Address | None:
    """The address that a canonical host spells, None for a name."""
    if not host[-1:].isdigit() and ":" not in host:
        return None  # a canonical IPv4 address ends in a digit
    try:
        return ip_address(host)
    except ValueError:
        return None


def _refuse(text: str, why: str) -> NoReturn:
    raise AuthorityError(f"{text[:300]!r} {why}")


def _port(port: str, text: str) -> int:
    if not _PORT.fullmatch(port) or int(port) > 0xFFFF:
        _refuse(text, "has a port that is not a plain number from 1 to 65535")
    return int(port)


def _ipv6(inside: str, text: str) -> str:
    try:
        address = IPv6Address(inside)
    except ValueError:
        _refuse(text, "is not an IPv6 address in brackets")
    mapped = address.ipv4_mapped
    return str(mapped) if mapped else address.compressed


def _host(host: str, text: str) -> str:
    host = host.removesuffix(".")  # the root label changes nothing but spelling
    labels = host.split(".")
    if _NUMERIC.fullmatch(labels[-1]):
        return _ipv4(host, text)
    if not host or len(host) > _MAX_HOST:
        _refuse(text, "has no host, or one that is longer than 253 characters")
    for label in labels:
        if not _LABEL.fullmatch(label):
            _refuse(text, f"has a bad label {label!r}")
        if label.startswith("xn--") and not _is_a_label(label):
            _refuse(text, f"has an xn-- label {label!r} that encodes no name")
    return host


def _ipv4(host: str, text: str) -> str:
    """Only four plain decimals: `127.1`, `0177.0.0.1`, `0x7f000001` and `2130706433` are loopback to some."""
    try:
        return str(IPv4Address(host))
    except ValueError:
        _refuse(text, "looks like an IPv4 address but is not four plain decimal numbers")


def _is_a_label(label: str) -> bool:
    """Whether an A-label is the one encoding of letters, marks and digits outside ASCII."""
    encoded = label[4:]
    try:
        decoded = encoded.encode("ascii").decode("punycode")
        again = decoded.encode("punycode").decode("ascii")
    except (UnicodeError, OverflowError):
        return False
    return (
        again == encoded
        and not decoded.isascii()
        and decoded == unicodedata.normalize("NFKC", decoded).lower()
        and all(unicodedata.category(char)[0] in "LMN" or char in "-\u00b7\u30fb" for char in decoded)
    )
