"""Tunnels for SSH: to exactly the granted host and port, for nothing but SSH, and refusals that clients show."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from moat.authority import Authority
from moat.proxy import Policy
from moat.proxy.admission import Admission
from moat.proxy.dialling import UpstreamOptions
from moat.proxy.ssh import KeyExchange, SshTunnel, refusal
from moat.proxy.tunnel import Tunnel
from moat.sshwire import Fields, string
from tests.proxy.conftest import HouseMaker
from tests.proxy.peers import Origin, Wire
from tests.ssh.world import Server, sshd

HOST = Authority("git.test", 22)


def greeter(wire: Wire) -> None:
    """A server that shows what reached it."""
    wire.send(b"SSH-2.0-here\r\n")
    wire.send(b"got " + wire.until(b"\n"))


def disconnected(data: bytes) -> str:
    """The reason in a refusal."""
    line, _, packet = data.partition(b"\r\n")
    assert line == b"SSH-2.0-moat"
    fields = Fields(packet)
    length, padding = fields.uint32(), fields.byte()
    assert padding >= 4
    assert (4 + length) % 8 == 0
    assert fields.byte() == 1
    assert fields.uint32() == 1
    return fields.string().decode()


def tunnel(seen: list[bytes] | None = None) -> SshTunnel:
    return SshTunnel(HOST, (seen if seen is not None else []).append)


@pytest.mark.parametrize("mode", ["permissive", "strict"])
def test_a_granted_host_is_reached_in_every_mode(make: HouseMaker, mode: str) -> None:
    with Origin(greeter) as server:
        with make(origins={(HOST.host, 22): server}, policy=Policy(mode=mode), tunnels=[tunnel()]) as house:
            with house.connected("git.test:22") as wire:
                wire.send(b"SSH-2.0-me\r\n")
                assert wire.rest() == b"SSH-2.0-here\r\ngot SSH-2.0-me\r\n"
            event = house.event()
            assert (event.method, event.url, event.status) == ("CONNECT", "git.test:22", 200)
            assert (event.request_bytes, event.response_bytes) == (12, 30)
            assert event.denial is None


@pytest.mark.parametrize("target", ["git.test:2222", "other.test:22", "git.test:443"])
def test_no_other_host_and_no_other_port(make: HouseMaker, target: str) -> None:
    with Origin(greeter) as server:
        host, _, port = target.partition(":")
        with make(origins={(host, int(port)): server}, tunnels=[tunnel()]) as house:
            with house.connected(target) as wire:
                wire.send(b"SSH-2.0-me\r\n")
                assert "no SSH grant" in disconnected(wire.rest())
            event = house.event()
            assert event.denial is not None
            assert event.denial.rule == "ssh grants"
        assert server.accepted == 0


def ask_by_http(make: HouseMaker, server: Origin) -> bytes:
    """What a request in absolute form for the granted port gets in strict mode."""
    policy = Policy(mode="strict")
    with make(origins={(HOST.host, 22): server}, policy=policy, tunnels=[tunnel()]) as house:
        with house.connect() as wire:
            wire.send(b"GET http://git.test:22/ HTTP/1.1\r\nHost: git.test:22\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                return wire.until(b"\n")
    return b""


LAYERS = [(Tunnel, "_judge"), (Admission, "_policy_denial")]


@pytest.mark.parametrize("broken", [None, *LAYERS], ids=["none", "tunnel", "exchange"])
def test_a_tunnel_is_not_open_to_http_in_strict_mode(
    make: HouseMaker, monkeypatch: pytest.MonkeyPatch, broken: tuple[type, str] | None
) -> None:
    """The grant opens the port for SSH; a request in absolute form would be another way to it.

    The connection's judgement and the exchange's own refuse it, either without the other.
    """
    if broken is not None:
        monkeypatch.setattr(*broken, lambda *_, **__: None)
    with Origin(greeter) as server:
        assert ask_by_http(make, server).startswith(b"HTTP/1.1 403 ")
        assert server.accepted == 0


def test_without_either_layer_http_would_get_through(
    make: HouseMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the test above is worth: with both layers broken the request arrives."""
    for layer in LAYERS:
        monkeypatch.setattr(*layer, lambda *_, **__: None)
    with Origin(greeter) as server:
        assert not ask_by_http(make, server).startswith(b"HTTP/1.1 403 ")
        assert server.accepted == 1


def test_what_a_tunnel_was_allowed_is_not_remembered_for_http(
    make: HouseMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judgement of an authority is kept for connections to come. Seen to fail when kept by authority alone."""
    monkeypatch.setattr(Admission, "_policy_denial", lambda *_: None)
    policy = Policy(mode="strict")
    with Origin(greeter) as server:
        with make(origins={(HOST.host, 22): server}, policy=policy, tunnels=[tunnel()]) as house:
            with house.connected("git.test:22") as wire:
                wire.send(b"SSH-2.0-me\r\n")
                assert wire.until(b"\n").startswith(b"SSH-")
            with house.connect() as wire:
                wire.send(b"GET http://git.test:22/ HTTP/1.1\r\nHost: git.test:22\r\n\r\n")
                assert wire.until(b"\n").startswith(b"HTTP/1.1 403 ")
        assert server.accepted == 1


@pytest.mark.parametrize("first", [b"\x16\x03\x01\x00\x05hello", b"GET / HTTP/1.1\r\n\r\n", b"SSX-"])
def test_only_ssh_passes(make: HouseMaker, first: bytes) -> None:
    """Seen to fail with `SshWatch.up` empty: the greeter then shows what it got."""
    with Origin(greeter) as server:
        with make(origins={(HOST.host, 22): server}, tunnels=[tunnel()]) as house:
            with house.connected("git.test:22") as wire:
                got = b""
                with contextlib.suppress(ConnectionError):  # dropped, not ended: nothing of it counts
                    for byte in first:  # in pieces, too
                        wire.send(bytes([byte]))
                    got = wire.rest()
                assert b"got" not in got
            event = house.event()
            assert event.error == "only SSH may pass here"
            assert event.request_bytes <= 4


def test_an_address_of_this_machine_is_refused_with_words(make: HouseMaker) -> None:
    async def resolver(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    with make(resolver=resolver, tunnels=[tunnel()], options=UpstreamOptions()) as house:
        with house.connected("git.test:22") as wire:
            wire.send(b"SSH-2.0-me\r\n")
            assert "not a public address: loopback" in disconnected(wire.rest())
        event = house.event()
        assert event.denial is not None
        assert event.denial.code == "address"


def test_a_host_that_is_not_there_is_told_in_words(make: HouseMaker) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        options = UpstreamOptions(connect_to={(HOST.host, 22): closed.getsockname()})
        with make(options=options, tunnels=[tunnel()]) as house:
            with house.connected("git.test:22") as wire:
                assert "connection refused" in disconnected(wire.rest())


# --- the key exchange ----------------------------------------------------------------------------------


@contextlib.contextmanager
def recorder(port: int) -> Iterator[tuple[int, bytearray]]:
    """A port that passes one connection on to `port`, and what the server says on it."""
    said = bytearray()

    def pump(source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                kept += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def serve(listener: socket.socket) -> None:
        with listener.accept()[0] as client, socket.create_connection(("127.0.0.1", port)) as server:
            up = threading.Thread(target=pump, args=(client, server, bytearray()))
            up.start()
            pump(server, client, said)
            up.join()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield listener.getsockname()[1], said
        thread.join()


EXCHANGES = [
    "curve25519-sha256",
    "sntrup761x25519-sha512@openssh.com",
    "ecdh-sha2-nistp521",
    "diffie-hellman-group14-sha256",
    "diffie-hellman-group-exchange-sha256",
]


@pytest.fixture(scope="module", params=["ed25519", "rsa"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with sshd(request.param, tmp_path_factory.mktemp("ssh") / "s", [], host_kind=request.param) as made:
        yield made


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_the_signature_of_a_real_session_is_found(server: Server, exchange: str) -> None:
    """In whatever pieces it arrives; it is what the client binds its agent to (tests/ssh proves that)."""
    with recorder(server.port) as (port, said):
        subprocess.run(
            ["ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
             "-o", "UserKnownHostsFile=none", "-o", f"KexAlgorithms={exchange}",
             "-p", str(port), "nobody@127.0.0.1"],
            capture_output=True, timeout=60, check=False, env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
    found = []
    for seed in range(20):
        dice = random.Random(seed)
        reader, rest = KeyExchange(), bytes(said)
        while rest and not reader.over:
            size = dice.choice([1, 7, 100, 65536])
            piece, rest = rest[:size], rest[size:]
            if (signature := reader.feed(piece)) is not None:
                found.append(signature)
        assert reader.over
    assert len(found) == 20
    assert len(set(found)) == 1
    name = Fields(found[0]).text()
    assert name == ("ssh-ed25519" if server.name == "ed25519" else "rsa-sha2-512")


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-x\r\n\xff\xff\xff\xff\x04",
        b"SSH-2.0-x\r\n\0\0\0\x04\x08",
        b"x" * 70_000,
        b"SSH-2.0-x\r\n" + string(b"\x04\x15" + bytes(4)),  # NEWKEYS without a reply before it
    ],
)
def test_what_is_no_key_exchange_ends_the_search(said: bytes) -> None:
    reader = KeyExchange()
    assert reader.feed(said) is None
    assert reader.over
    assert reader.feed(b"more") is None


def test_a_refusal_is_a_whole_packet_whatever_its_length() -> None:
    for length in range(40):
        assert disconnected(refusal("x" * length)) == "x" * length


@pytest.mark.parametrize(("begin", "piece"), [(b"", b"\n"), (b"SSH-2.0-x\r\n", b"\0\0\0\2\1\2")])
def test_a_server_of_short_lines_or_packets_holds_nobody_up(begin: bytes, piece: bytes) -> None:
    """What was left was copied for each of them: a second of the run's proxy for each 256 KiB."""
    exchange = KeyExchange()
    began = time.monotonic()
    assert exchange.feed(begin + piece * ((2 << 20) // len(piece))) is None
    assert time.monotonic() - began < 8
    assert not exchange.over
