"""The machine's own public addresses, in a network namespace that has some."""

from __future__ import annotations

import errno
import json
import subprocess
import sys

import pytest

from moat.authority import Authority
from moat.proxy.dialling import Dialler, UpstreamError
from moat.proxy.own import is_own
from tests.namespaces import apart

# Servers on every interface of a machine with public addresses, and what the proxy's way out does there.
PROGRAM = """
import fcntl, json, socket, struct
import anyio
from moat.authority import Authority
from moat.proxy import Limits, Upstream
from moat.proxy.dialling import AddressDeniedError, UpstreamError
from moat.proxy.own import is_own

OWN = "198.97.190.53"
OWN6 = "2001:500:1::53"
four, six = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
fcntl.ioctl(four, 0x8914, struct.pack("16sH14x", b"lo", 1))  # SIOCSIFFLAGS: up
address = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(OWN))
fcntl.ioctl(four, 0x8916, struct.pack("16s", b"lo:1") + address)  # SIOCSIFADDR
fcntl.ioctl(six, 0x8916, struct.pack("16sIi", socket.inet_pton(socket.AF_INET6, OWN6), 128, 1))
server = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
port = server.getsockname()[1]

async def dial(host, addresses):
    async def resolver(name, port):
        return addresses
    try:
        stream = await Upstream(resolver=resolver, limits=Limits(dial_timeout=5)).dial(Authority(host, port))
    except AddressDeniedError as error:
        return error.denial.reason
    except UpstreamError as error:
        return error.code
    stream.abort()
    return "connected"

async def main():
    print(json.dumps({
        "literal": await dial(OWN, [OWN]),
        "name": await dial("me.example.org", [OWN6]),
        "one of two": await dial("me.example.org", ["192.36.148.17", OWN]),
        "mapped": await dial("me.example.org", ["::ffff:" + OWN]),
        "another": await dial("other.example.org", ["192.36.148.17"]),
        "own": [is_own(OWN), is_own(OWN6), is_own("127.0.0.1"), is_own("192.36.148.17"), is_own("2001:500:1::54")],
    }))

anyio.run(main)
"""


def test_the_machines_own_addresses_are_not_dialled() -> None:
    """Seen failing (`connected`) without `is_own` in `Dialler._guard`."""
    done = subprocess.run(
        [*apart("--net"), sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["literal"] == "198.97.190.53 is not a public address: this machine's own"
    for case in ("name", "one of two", "mapped"):
        assert told[case].startswith("me.example.org ("), case
        assert told[case].endswith(": this machine's own"), case
    assert told["another"] == "connect", "no way leads there, and that is all that is wrong with it"
    assert told["own"] == [True, True, True, False, False]


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS])
def test_what_cannot_be_asked_is_not_dialled(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """A sandbox can take every descriptor, and give one back. Seen failing while any error meant "no"."""

    def spent(*_: object) -> None:
        raise OSError(code, "spent")

    monkeypatch.setattr("moat.proxy.own.socket.socket", spent)
    with pytest.raises(OSError, match="spent"):
        is_own("192.36.148.17")
    with pytest.raises(UpstreamError, match="cannot be reached"):
        Dialler._guard(Authority("192.36.148.17", 443), ["192.36.148.17"])


def test_an_address_of_another_family_than_the_machine_has_is_not_its_own() -> None:
    assert not is_own("2001:db8::1%nowhere")
