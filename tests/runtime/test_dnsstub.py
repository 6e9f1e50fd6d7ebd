"""The DNS stub: one address for one name, strict about queries, silent or brief about everything else."""

from __future__ import annotations

import ipaddress
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from moat.runtime import dnsstub
from moat.runtime.dnsstub import FullError, NameTable, answer
from moat.runtime.sandbox import HOST_ADDRESS, HOST_NAME

POOL = ipaddress.ip_network("127.64.0.0/10")
A, AAAA, PTR, SRV, HTTPS, ANY = 1, 28, 12, 33, 65, 255
EDNS = b"\0" + struct.pack(">HHIH", 41, 1232, 0, 0)


def wire(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label) + b"\0"


def query(
    name: str, kind: int = A, *, flags: int = 0x0100, counts: tuple[int, ...] = (1, 0, 0, 0), group: int = 1
) -> bytes:
    return struct.pack(">HHHHHH", 0x1234, flags, *counts) + wire(name) + struct.pack(">HH", kind, group)


def code(reply: bytes | None) -> int:
    assert reply is not None
    identifier, flags = struct.unpack_from(">HH", reply)
    assert identifier == 0x1234
    assert flags & 0x8000, "it is a reply"
    return flags & 15


def address(reply: bytes | None) -> str:
    """The one address of a reply, checked octet for octet."""
    assert reply is not None
    assert code(reply) == 0
    assert struct.unpack_from(">HHHH", reply, 4)[:2] == (1, 1)
    end = reply.index(b"\0", 12) + 5
    assert struct.unpack_from(">HHHIH", reply, end) == (0xC00C, 1, 1, 60, 4)
    return str(ipaddress.ip_address(reply[end + 12 : end + 16]))


# Names and addresses


def test_a_name_keeps_its_address_whatever_its_case_or_final_dot() -> None:
    names = NameTable()
    first = names.address("example.com")
    assert first is not None
    assert ipaddress.ip_address(first) in POOL
    assert names.address("EXAMPLE.com.") == first
    assert names.name(first) == "example.com"
    assert NameTable().address("example.com") == first, "the same in every run"


def test_an_address_is_never_given_to_a_second_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when names collide: here all of them have one hash."""
    monkeypatch.setattr(dnsstub.hashlib, "blake2s", lambda _data, digest_size: _Constant())
    names = NameTable()
    addresses = [names.address(f"host{index}.test") for index in range(300)]
    assert len(set(addresses)) == 300
    assert all(ipaddress.ip_address(text) in POOL for text in addresses if text)
    assert [names.name(text) for text in addresses if text] == [f"host{index}.test" for index in range(300)]


class _Constant:
    def digest(self) -> bytes:
        return b"\xff\xff\xff\xff"  # the last slot: probing wraps round


def test_a_full_table_refuses_new_names_and_keeps_the_old() -> None:
    names = NameTable(limit=2)
    first = names.address("one.test")
    names.address("two.test")
    with pytest.raises(FullError):
        names.address("three.test")
    assert code(answer(query("three.test"), names)) == 2
    assert address(answer(query("one.test"), names)) == first


def test_names_inside_the_sandbox_have_their_real_addresses() -> None:
    names = NameTable({HOST_NAME: HOST_ADDRESS})
    assert names.address(HOST_NAME) == HOST_ADDRESS
    assert names.name(HOST_ADDRESS) is None, "not captured"
    assert ipaddress.ip_address(HOST_ADDRESS) not in POOL
    assert names.address("localhost") == names.address("app.localhost") == "127.0.0.1"


@pytest.mark.parametrize(
    "name",
    ["", ".", "1.2.3.4", "a..b", "-a.test", "a-.test", "a b.test", "ex\N{LATIN SMALL LETTER A WITH DIAERESIS}.test", "*.test",
     "a/b", "x" * 64 + ".test", ".".join(["x" * 60] * 5), "host.123", "0x7f.1", "a\n.test", "a.test\n", "a@b"],
)  # fmt: skip
def test_what_is_no_host_name_has_no_address(name: str) -> None:
    assert NameTable().address(name) is None


def test_names_that_the_field_uses_are_host_names() -> None:
    for name in (
        "a",
        "xn--bcher-kva.example",
        "_dmarc.example.com",
        "a--b.c",
        "1.example",
        "x" * 63 + ".test",
    ):
        assert NameTable().address(name) is not None


# Queries


def test_an_a_query_gets_the_synthetic_address() -> None:
    names = NameTable()
    assert address(answer(query("api.Example.COM"), names)) == names.address("api.example.com")


def test_edns_is_answered_with_edns() -> None:
    names = NameTable()
    reply = answer(query("example.com", counts=(1, 0, 0, 1)) + EDNS, names)
    assert address(reply) == names.address("example.com")
    assert reply is not None
    assert reply.endswith(EDNS)
    cookie = EDNS[:-2] + struct.pack(">H", 12) + b"\0\x0a\0\x08" + b"12345678"
    assert address(answer(query("example.com", counts=(1, 0, 0, 1)) + cookie, names)) == names.address(
        "example.com"
    )


@pytest.mark.parametrize("kind", [AAAA, PTR, SRV, HTTPS, ANY, 2, 16, 65535])
def test_every_other_type_is_an_empty_answer_and_no_name_is_kept(kind: int) -> None:
    names = NameTable(limit=0)
    reply = answer(query("example.com", kind), names)
    assert code(reply) == 0
    assert reply is not None
    assert struct.unpack_from(">HHHH", reply, 4) == (1, 0, 0, 0)


def test_what_is_no_host_name_does_not_exist() -> None:
    for name in ("1.2.3.4", "a b.test", "*.test"):
        assert code(answer(query(name), NameTable())) == 3


def test_other_classes_and_operations_are_refused() -> None:
    assert code(answer(query("version.bind", 16, group=3), NameTable())) == 5
    assert code(answer(query("example.com", flags=0x2800), NameTable())) == 4


BAD = {
    "no question": struct.pack(">HHHHHH", 0x1234, 0x0100, 0, 0, 0, 0),
    "two questions": query("example.com", counts=(2, 0, 0, 0)) + wire("b.test") + b"\0\1\0\1",
    "an answer in a query": query("example.com", counts=(1, 1, 0, 0)),
    "an authority in a query": query("example.com", counts=(1, 0, 1, 0)),
    "two additional records": query("example.com", counts=(1, 0, 0, 2)) + EDNS * 2,
    "an additional record that is missing": query("example.com", counts=(1, 0, 0, 1)),
    "an additional record that is no OPT": query("example.com", counts=(1, 0, 0, 1)) + EDNS.replace(b"\0\x29", b"\0\1", 1),
    "an OPT with a length of its own": query("example.com", counts=(1, 0, 0, 1)) + EDNS[:-1] + b"\5",
    "rubbish behind it": query("example.com") + b"x",
    "a compression pointer": struct.pack(">HHHHHH", 0x1234, 0x0100, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1",
    "a pointer to itself behind a label": struct.pack(">HHHHHH", 0x1234, 0x0100, 1, 0, 0, 0) + b"\1a\xc0\x0c\0\1\0\1",
    "a label past the end": struct.pack(">HHHHHH", 0x1234, 0x0100, 1, 0, 0, 0) + b"\x3fabc",
    "a label of 64": struct.pack(">HHHHHH", 0x1234, 0x0100, 1, 0, 0, 0) + b"\x40" + b"a" * 64 + b"\0\0\1\0\1",
    "a name without an end": struct.pack(">HHHHHH", 0x1234, 0x0100, 1, 0, 0, 0) + b"\3abc",
    "a name of 256": query(".".join(["x" * 63] * 4)),
    "a dot inside a label": struct.pack(">HHHHHH", 0x1234, 0x0100, 1, 0, 0, 0) + b"\3a.b\4test\0\0\1\0\1",
    "no type": query("example.com")[:-4],
    "no class": query("example.com")[:-2],
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_query_is_a_format_error(name: str) -> None:
    names = NameTable(limit=0)
    reply = answer(BAD[name], names)
    assert code(reply) == 1
    assert reply is not None
    assert len(reply) == 12, "nothing of it is echoed"


def test_replies_and_what_is_too_short_or_too_long_get_silence() -> None:
    names = NameTable()
    assert answer(query("example.com", flags=0x8180), names) is None
    assert answer(b"", names) is None
    assert answer(query("example.com")[:11], names) is None
    assert answer(query("example.com") + b"x" * dnsstub.MAX_QUERY, names) is None


@given(st.binary(max_size=300))
def test_no_bytes_make_it_fail(data: bytes) -> None:
    reply = answer(data, NameTable())
    assert reply is None or len(reply) <= len(data) + 27  # no amplification: one record and EDNS


@given(st.binary(max_size=60))
def test_no_question_makes_it_fail(data: bytes) -> None:
    names = NameTable()
    reply = answer(struct.pack(">HHHHHH", 0x1234, 0x0100, 1, 0, 0, 0) + data, names)
    assert code(reply) in {0, 1, 3, 5}


def test_the_file_stands_alone() -> None:
    """It is copied into containers: `python -I -S` with nothing but the file, grammar of Python 3.7."""
    import ast

    for name in ("dnsstub.py", "seccomp.py"):
        source = Path(dnsstub.__file__).with_name(name).read_text()
        tree = ast.parse(source, feature_version=(3, 7))
        imported = {
            alias.name if isinstance(node, ast.Import) else node.module
            for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }
        assert not [
            module for module in imported if module and module.split(".")[0] not in sys.stdlib_module_names
        ]
        done = subprocess.run([sys.executable, "-I", "-S", "-c", source], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
