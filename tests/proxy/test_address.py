"""Which addresses may be dialled, and the one spelling of an authority.

Each row of `REFUSED` fails when its network is taken out of the table; each row of `BAD` when its check is.
"""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, strategies as st

from moat.authority import Authority, AuthorityError, literal, parse_authority, split_host_port
from moat.proxy.address import refuse

REFUSED = [
    ("0.0.0.0", "this network"), ("0.255.255.255", "this network"),
    ("127.0.0.1", "loopback"), ("127.1.2.3", "loopback"), ("127.255.255.255", "loopback"),
    ("10.0.0.0", "private"), ("10.255.255.255", "private"),
    ("172.16.0.0", "private"), ("172.17.0.1", "private"), ("172.31.255.255", "private"),
    ("192.168.0.1", "private"), ("192.168.255.255", "private"),
    ("100.64.0.0", "carrier-grade NAT"), ("100.127.255.255", "carrier-grade NAT"),
    ("169.254.0.1", "link-local"), ("169.254.255.255", "link-local"),
    ("169.254.169.254", "cloud metadata"), ("169.254.170.2", "link-local"),
    ("168.63.129.16", "cloud metadata"), ("100.100.100.200", "cloud metadata"), ("192.0.0.192", "cloud metadata"),
    ("192.0.0.0", "protocol assignments"), ("192.0.0.255", "protocol assignments"),
    ("192.0.2.1", "documentation"), ("198.51.100.1", "documentation"), ("203.0.113.255", "documentation"),
    ("192.88.99.1", "6to4 relay"), ("198.18.0.0", "benchmarking"), ("198.19.255.255", "benchmarking"),
    ("224.0.0.1", "multicast"), ("239.255.255.255", "multicast"),
    ("240.0.0.1", "reserved"), ("255.255.255.254", "reserved"), ("255.255.255.255", "broadcast"),
    ("::", "unspecified"), ("::1", "loopback"), ("::2", "IPv4-compatible of this network"),
    ("fe80::1", "link-local"), ("febf::1", "link-local"), ("fec0::1", "site-local"),
    ("fc00::1", "unique local"), ("fdff:ffff::1", "unique local"),
    ("fd00:ec2::254", "cloud metadata"), ("fd20:ce::254", "cloud metadata"),
    ("ff02::1", "multicast"), ("ff0e::1", "multicast"),
    ("100::1", "discard"), ("2001:db8::1", "documentation"), ("3fff::1", "documentation"),
    ("2001:2::1", "protocol assignments"), ("2001:20::1", "protocol assignments"),
    ("2001:1ff:ffff::1", "protocol assignments"), ("4000::1", "not global unicast"),
    ("5f00::1", "not global unicast"), ("1::1", "not global unicast"), ("e000::1", "not global unicast"),
    ("::ffff:127.0.0.1", "loopback"), ("::ffff:10.0.0.1", "private"), ("::ffff:169.254.169.254", "cloud metadata"),
    ("::ffff:0.0.0.0", "this network"), ("::ffff:7f00:1", "loopback"), ("::ffff:0:127.0.0.1", "not global unicast"),
    ("::127.0.0.1", "IPv4-compatible of loopback"), ("::8.8.8.8", "IPv4-compatible"),
    ("2002:7f00:1::", "6to4 of loopback"), ("2002:a9fe:a9fe::1", "6to4 of cloud metadata"),
    ("2002:808:808::1", "6to4"),
    ("64:ff9b::127.0.0.1", "NAT64 of loopback"), ("64:ff9b::a9fe:a9fe", "NAT64 of cloud metadata"),
    ("64:ff9b::10.0.0.1", "NAT64 of private"), ("64:ff9b:1::808:808", "local NAT64"),
    ("2001:0:7f00:1::", "Teredo of loopback"), ("2001:0:808:808:0:0:80ff:fffe", "Teredo of loopback"),
    ("2001:0:808:808::f7f7:f7f7", "Teredo"),
    ("fe80::1%eth0", "zone id"), ("2606:4700::1%1", "zone id"),
    ("", "not an IP address"), ("localhost", "not an IP address"), ("127.1", "not an IP address"),
    ("0x7f.0.0.1", "not an IP address"), ("0177.0.0.1", "not an IP address"), ("2130706433", "not an IP address"),
    ("[::1]", "not an IP address"), ("127.0.0.1 ", "not an IP address"), ("127.0.0.1/8", "not an IP address"),
]  # fmt: skip

ALLOWED = [
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255",
    "128.0.0.0", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "192.0.1.1", "192.167.255.255",
    "192.169.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255", "168.63.129.17", "160.79.104.10",
    "2606:4700:4700::1111", "2001:4860:4860::8888", "2001:200::1", "2a00:1450::1", "3ffe::1", "2003::1",
    "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2607:6bc0::10",
]  # fmt: skip


@pytest.mark.parametrize(("address", "reason"), REFUSED)
def test_refused_addresses(address, reason):
    assert refuse(address) == reason


@pytest.mark.parametrize("address", ALLOWED)
def test_allowed_addresses(address):
    assert refuse(address) is None
    assert refuse(ipaddress.ip_address(address)) is None


@given(st.ip_addresses())
def test_nothing_passes_that_python_knows_to_be_local(address):
    """`ipaddress` errs in details that change between versions, but what it calls local is never allowed."""
    local = address.is_private or address.is_loopback or address.is_link_local or address.is_multicast
    if local or address.is_reserved or address.is_unspecified:
        assert refuse(address) is not None or _unwraps_to_public(address)


def _unwraps_to_public(address) -> bool:
    mapped = address.ipv4_mapped if address.version == 6 else None
    nat64 = address.version == 6 and address in ipaddress.IPv6Network("64:ff9b::/96")
    return bool(mapped or nat64)


@given(st.ip_addresses(v=4))
def test_wrapping_an_address_never_helps(address):
    number = int(address)
    wrapped = [
        f"::ffff:{address}",
        f"::{address}",
        f"64:ff9b::{address}",
        str(ipaddress.IPv6Address((0x2002 << 112) | (number << 80) | 1)),
        str(ipaddress.IPv6Address((0x20010000 << 96) | (number << 64))),
        str(ipaddress.IPv6Address((0x20010000 << 96) | (0x08080808 << 64) | (number ^ 0xFFFFFFFF))),
    ]
    if refuse(address) is not None:
        assert all(refuse(other) is not None for other in wrapped)


GOOD = [
    ("a.example:443", "a.example", 443),
    ("A.EXAMPLE:443", "a.example", 443),
    ("a.example.:443", "a.example", 443),
    ("localhost:1", "localhost", 1),
    ("moat-host:65535", "moat-host", 65535),
    ("_dmarc.a_b.example:80", "_dmarc.a_b.example", 80),
    ("r3---sn-x.example:443", "r3---sn-x.example", 443),
    ("1.2.3.4.example:80", "1.2.3.4.example", 80),
    ("3com.example:80", "3com.example", 80),
    ("xn--bcher-kva.example:80", "xn--bcher-kva.example", 80),
    ("XN--BCHER-KVA.example:80", "xn--bcher-kva.example", 80),
    ("xn--fsq.xn--0zwm56d:80", "xn--fsq.xn--0zwm56d", 80),
    ("a" * 63 + ".example:80", "a" * 63 + ".example", 80),
    ("127.0.0.1:80", "127.0.0.1", 80),
    ("127.0.0.1.:80", "127.0.0.1", 80),
    ("[::1]:80", "::1", 80),
    ("[2001:DB8:0:0::1]:80", "2001:db8::1", 80),
    ("[::ffff:127.0.0.1]:80", "127.0.0.1", 80),
    ("[::FFFF:7f00:1]:80", "127.0.0.1", 80),
    ("[::127.0.0.1]:80", "::7f00:1", 80),
]

BAD = [
    "", ":", ":80", "a.example", "a.example:", "a.example:0", "a.example:65536", "a.example:99999999999",
    "a.example:+80", "a.example:-80", "a.example:080", "a.example:8 0", "a.example: 80", "a.example:80 ",
    "a.example:80\n", "a.example:0x50", "a.example:http", "a.example:80:80", "a.example:٨٠",
    "user@a.example:80", "user:pass@a.example:80", "a.example@:80", "@a.example:80",
    "http://a.example:80", "a.example/x:80", "a.example?x:80", "a.example#x:80", "a.example\\x:80",
    "a..example:80", ".a.example:80", "a.example..:80", ".:80", "..:80", "-a.example:80", "a-.example:80",
    "a b.example:80", "a\tb:80", "a\x00b:80", "a%00b:80", "a%2eb:80", "*.a.example:80", "a,b:80", "a;b:80",
    "é.example:80", "\uff41.example:80", "a。example:80", "\u200ba.example:80",
    "a" * 64 + ".example:80", ".".join(["a" * 60] * 5) + ":80",
    "xn--.example:80", "xn--a.example:80", "xn--github-.example:80", "xn--zzzzzzzzzz999999.example:80",
    "xn--bcher-kva-.example:80", "xn---.example:80", "xn--tda-.example:80",
    "127.1:80", "127.0.1:80", "2130706433:80", "0x7f000001:80", "0x7f.0.0.1:80", "0X7F.1:80", "0177.0.0.1:80",
    "127.0.0.01:80", "127.0.0.256:80", "1.2.3.4.5:80", "1.2.3:80", "0:80", "1:80", "00000.1:80", "127.0.0.0x1:80",
    "127.0.0.1..:80", "0x:80", "a.0x7f:80", "a.1:80", "256.256.256.256:80",
    "[::1]", "[::1:80", "::1:80", "[::1]80", "[::1]:", "[::1]x:80", "[]:80", "[127.0.0.1]:80", "[::1%lo]:80",
    "[::1%25lo]:80", "[fe80::1%eth0]:80", "[v1.x]:80", "[::1]]:80", "[[::1]]:80", "x[::1]:80", "[::g]:80",
    "[::1]:80:80", "[a.example]:80", "[ ::1]:80",
]  # fmt: skip


@pytest.mark.parametrize(("text", "host", "port"), GOOD)
def test_authorities(text, host, port):
    parsed = parse_authority(text)
    assert parsed == Authority(host, port)
    assert parse_authority(text.encode("ascii")) == parsed
    assert parse_authority(str(parsed)) == parsed


@pytest.mark.parametrize("text", BAD)
def test_bad_authorities(text):
    for form in (text, text.encode("utf-8", "surrogatepass")):
        with pytest.raises(AuthorityError) as caught:
            parse_authority(form)
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "why"),
    [("u@a.example:1", "user name"), ("[fe80::1%lo]:1", "zone id"), ("127.1:1", "four plain decimal"),
     ("a:b:1", "in brackets"), ("a.example:0", "port"), ("é:1", "A-labels"), ("xn--a.example:1", "encodes no name")],
)  # fmt: skip
def test_refusals_name_their_reason(text, why):
    with pytest.raises(AuthorityError, match=why):
        parse_authority(text)


def test_default_port():
    assert parse_authority("a.example", default_port=443) == Authority("a.example", 443)
    assert parse_authority("[::1]", default_port=443) == Authority("::1", 443)
    assert parse_authority("a.example:80", default_port=443) == Authority("a.example", 80)
    with pytest.raises(AuthorityError):
        parse_authority("a.example:", default_port=443)
    assert split_host_port("A.example") == ("a.example", None)


def test_authority_spells_itself():
    assert str(Authority("::1", 443)) == "[::1]:443"
    assert str(Authority("a.example", 80)) == "a.example:80"
    assert Authority("a.example", 443).host_header("https") == "a.example"
    assert Authority("a.example", 443).host_header("http") == "a.example:443"
    assert Authority("::1", 80).host_header("http") == "[::1]"
    assert Authority("::1", 8080).host_header("http") == "[::1]:8080"
    assert Authority("192.0.2.1", 1).address == ipaddress.ip_address("192.0.2.1")
    assert Authority("a.example", 1).address is None
    assert literal("a.example") is None


# Of text drawn at random one in twenty is an authority, and a plain one.
_NAMES = st.lists(
    st.sampled_from(("a", "B", "c", ".d", ".", "-", "_", "1", "xn--", "é", "。", "ﬀ", "K")), max_size=5
)
_LITERALS = (
    "1.2.3.4", "1.2.3.04", "127.1", "0x7f.1", "[::1]", "[FE80::1]", "[0:0::1]", "[::FFFF:1.2.3.4]", "[::1%25e]", "::1",
)  # fmt: skip
_PORTS = ("", ":443", ":1", ":0", ":00443", ":", ":65536")
_hosts = _NAMES.map("".join) | st.sampled_from(_LITERALS)


@given(st.text(max_size=30) | st.tuples(_hosts, st.sampled_from(_PORTS)).map("".join))
def test_whatever_parses_is_canonical(text):
    try:
        parsed = parse_authority(text, default_port=1)
    except AuthorityError:
        return
    assert parse_authority(str(parsed)) == parsed
    assert parsed.host == parsed.host.lower()
    assert parsed.host.isascii()
