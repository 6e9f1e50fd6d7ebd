"""What must not pass, over the wire, with proof that nothing was opened, fetched or sent.

Defences, and the tests that fail without them: policy before everything (`Admission._judge`, `Tunnel._judge`),
the address guard (`Dialler._guard`), one authority (`Admission._authority_mismatch`, `RunCA`'s SNI check),
the leak guard (`InjectionTable.leaks`), strict heads (`http1`), the token (`Tunnel._authorised`), answers
that survive (`tunnel.linger`), verification (`tls.verifying_context`), deadlines (`Watch.tick`). Each was
replaced by a function that does nothing, and the test named after it was seen to fail.
"""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from moat.proxy import Limits, Policy, RunCA, UpstreamOptions, race
from moat.proxy.stream import StreamError
from moat.rules import parse_host_rule
from tests.proxy import cases
from tests.proxy.conftest import PLACEHOLDER, House, HouseMaker, tls_origin
from tests.proxy.peers import Origin, Wire, client_context, echo, reply
from tests.proxy.test_exchange import API, OTHER, PLAIN, get

STRICT = Policy(mode="strict")


def nobody(wire: Wire) -> None:
    raise AssertionError("a connection was opened")


def inside(house: House, target: str, request: bytes | None = None) -> tuple[int, str | None, dict[str, str]]:
    """The answer to a request in a tunnel: status, `X-Moat-Denied`, JSON."""
    host, _, port = target.rpartition(":")
    with house.connected(target) as tunnel, tunnel.tls(house.trust, host.strip("[]")) as wire:
        authority = host if port == "443" else target
        wire.send(request or get(host=authority))
        answer = wire.message()
        return answer.status, answer.get("x-moat-denied"), answer.json()


# --- policy --------------------------------------------------------------------------------------


def test_a_denied_host_is_told_inside_the_tunnel_and_never_dialled(make: HouseMaker, origin: Origin) -> None:
    with make(origins={API: origin}, policy=STRICT) as house, house.tunnel() as wire:
        wire.send(get("/x?y=z"))
        answer = wire.message()
        assert answer.status == 403
        assert answer.get("content-type") == "application/json"
        assert answer.get("x-moat-denied") == "policy"
        assert answer.get("x-should-retry") == "false"
        assert answer.get("connection") == "close"
        told = answer.json()
        assert "api.test" in told["error"]
        assert told["rule"]
        assert told["hint"]
        assert wire.rest() == b""
        event = house.event()
        assert (event.method, event.url, event.status) == ("GET", "https://api.test/x?y=z", 403)
        assert event.denial is not None
        assert event.denial.code == "policy"
        assert house.credentials.asked == []
    assert origin.accepted == 0


def test_path_rules_are_asked_for_every_exchange(make: HouseMaker, origin: Origin) -> None:
    policy = Policy(mode="strict", hosts=(parse_host_rule("api.test", ["allow GET /ok/**"]),))
    with make(origins={API: origin}, policy=policy) as house:
        with house.tunnel() as wire:
            wire.send(get("/ok/1"))
            assert wire.message().status == 200
            wire.send(get("/secret"))
            assert wire.message().status == 403
        assert house.credentials.asked == ["demo"]
        with house.tunnel() as wire:
            wire.send(b"DELETE /ok/1 HTTP/1.1\r\nHost: api.test\r\n\r\n")
            assert wire.message().status == 403


def test_a_denied_tunnel_may_carry_plain_http_or_nothing(make: HouseMaker) -> None:
    limits = replace(Limits(), tls_handshake_timeout=0.5)
    with Origin(nobody) as origin, make(origins={API: origin}, policy=STRICT, limits=limits) as house:
        with house.connected("api.test:443") as wire:
            wire.send(get(host="api.test:443"))
            assert wire.message().status == 403
        with house.connected("api.test:443") as wire, contextlib.suppress(ConnectionResetError):
            assert wire.rest() == b""  # closed after a while
        statuses = [house.event().status, house.event().status]
        assert statuses == [403, 0]


def test_plain_http_to_a_denied_host(make: HouseMaker) -> None:
    with (
        Origin(nobody) as origin,
        make(origins={PLAIN: origin}, policy=STRICT) as house,
        house.connect() as wire,
    ):
        wire.send(b"GET http://api.test/ HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert wire.message().status == 403


# --- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "codes"),
    [
        ("127.0.0.1:443", {"address"}),
        ("127.8.9.10:80", {"address"}),
        ("10.0.0.1:443", {"address"}),
        ("192.168.1.1:443", {"address"}),
        ("172.16.0.1:443", {"address"}),
        ("169.254.169.254:80", {"address"}),
        ("100.100.100.200:443", {"address"}),
        ("0.0.0.0:443", {"address"}),
        ("224.0.0.1:443", {"address"}),
        ("255.255.255.255:443", {"address"}),
        ("[::1]:443", {"address"}),
        ("[::]:443", {"address"}),
        ("[fe80::1]:443", {"address"}),
        ("[fd00::1]:443", {"address"}),
        ("[::ffff:127.0.0.1]:443", {"address"}),
        ("[::ffff:a9fe:a9fe]:80", {"address"}),
        ("[64:ff9b::7f00:1]:443", {"address"}),
        ("[2002:7f00:1::]:443", {"address"}),
    ],
)
def test_addresses_that_are_not_public_are_refused(
    loop: str, make: HouseMaker, target: str, codes: set[str]
) -> None:
    with make(origins={}) as house, house.connected(target) as wire:
        wire.send(get(host=target))
        answer = wire.message()
        assert answer.status == 403
        assert answer.get("x-moat-denied") in codes


@pytest.mark.parametrize("target", ["2130706433:443", "0x7f000001:443", "0177.0.0.1:443", "127.1:443", "0:443",
                                    "user@api.test:443", "[fe80::1%25lo]:443", "api.test", "api.test:0",
                                    "api.test:65536", "-api.test:443", "api..test:443"])  # fmt: skip
def test_other_spellings_of_an_authority_are_malformed(make: HouseMaker, target: str) -> None:
    with make() as house, house.connect() as wire:
        wire.send(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        answer = wire.message()
        assert (answer.status, answer.get("x-moat-denied")) == (400, "malformed")


def test_a_name_that_resolves_to_a_private_address_is_refused(make: HouseMaker) -> None:
    """One address of several is enough: who owns the name chooses which one would be tried."""
    asked: list[str] = []

    async def resolver(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["93.184.216.34", "127.0.0.1"]

    with make(resolver=resolver) as house:
        status, code, told = inside(house, "rebind.test:443")
        assert (status, code) == (403, "address")
        assert "127.0.0.1" in told["error"]
        assert asked == ["rebind.test"]
        assert house.credentials.asked == []


def test_a_name_that_changes_between_two_look_ups_is_looked_up_once(make: HouseMaker) -> None:
    """The checked address is the dialled one: the second answer of the resolver is never asked for."""
    asked: list[str] = []

    async def resolver(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["203.0.113.1"] if len(asked) > 1 else ["127.0.0.1"]

    with make(resolver=resolver) as house:
        assert inside(house, "rebind.test:443")[:2] == (403, "address")
        assert asked == ["rebind.test"]


def test_the_dialled_address_is_the_checked_one(make: HouseMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed to connect() is an address, so nothing can be resolved a second time.

    In a race of addresses as well: none is tried before all were checked.
    """
    dialled: list[tuple[str, int]] = []
    public = ["2606:4700::1", "2606:4700::2", "93.184.216.34"]

    async def connect(address: tuple[str, int], *_: object, **__: object) -> None:
        dialled.append(address)
        raise StreamError("connection refused")

    async def resolver(host: str, port: int) -> Sequence[str]:
        return public if host == "public.test" else [*public, "10.0.0.1"]

    monkeypatch.setattr(race, "connect", connect)  # no address outside loopback is ever contacted here
    with make(resolver=resolver) as house:
        assert inside(house, "mixed.test:443")[:2] == (403, "address")
        assert dialled == []
        assert inside(house, "public.test:443")[0] == 502
    assert dialled == [("2606:4700::1", 443), ("93.184.216.34", 443), ("2606:4700::2", 443)]


def test_localhost_by_name(make: HouseMaker) -> None:
    with Origin(nobody) as origin, make() as house:
        assert inside(house, f"localhost:{origin.port}")[:2] == (403, "address")


# --- one authority -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        get(host="other.test"),
        get(host="api.test:8443"),
        get(host="api.test:80"),
        get("https://other.test/"),
        get("http://api.test/"),
        get("https://other.test/", host="other.test"),
    ],
)
def test_a_host_header_that_is_not_the_tunnels_is_refused(make: HouseMaker, request_: bytes) -> None:
    with (
        Origin(nobody) as origin,
        make(origins={API: origin, OTHER: origin}) as house,
        house.tunnel() as wire,
    ):
        wire.send(request_)
        answer = wire.message()
        assert (answer.status, answer.get("x-moat-denied")) == (403, "authority")
        assert house.credentials.asked == []


@pytest.mark.parametrize(
    "request_", [get(host="API.test"), get(host="api.test:443"), get("https://api.test/x")]
)
def test_other_spellings_of_the_tunnels_host_pass(make: HouseMaker, origin: Origin, request_: bytes) -> None:
    with make(origins={API: origin}) as house, house.tunnel() as wire:
        wire.send(request_)
        answer = wire.message()
        assert answer.status == 200
        assert answer.json()["start"].split()[1] in {"/", "/x"}


def test_an_absolute_target_and_its_host_header_must_agree(make: HouseMaker) -> None:
    with Origin(nobody) as origin, make(origins={PLAIN: origin}) as house, house.connect() as wire:
        wire.send(b"GET http://api.test/ HTTP/1.1\r\nHost: other.test\r\n\r\n")
        answer = wire.message()
        assert (answer.status, answer.get("x-moat-denied")) == (403, "authority")


def test_a_server_name_that_is_not_the_tunnels_gets_no_tls(make: HouseMaker) -> None:
    with Origin(nobody) as origin, make(origins={API: origin, OTHER: origin}) as house:
        with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
            house.tunnel(name="other.test")
        event = house.event()
        assert event.denial is not None
        assert event.denial.code == "authority"
        assert "other.test" in event.denial.reason


def test_connect_inside_a_tunnel_is_refused(make: HouseMaker) -> None:
    with Origin(nobody) as origin, make(origins={API: origin}) as house, house.tunnel() as wire:
        wire.send(b"CONNECT other.test:443 HTTP/1.1\r\nHost: other.test:443\r\n\r\n")
        assert wire.message().status == 403


def test_a_proxy_request_must_name_its_host(make: HouseMaker) -> None:
    with make() as house:
        for request in (get(), b"GET https://api.test/ HTTP/1.1\r\nHost: api.test\r\n\r\n"):
            with house.connect() as wire:
                wire.send(request)
                assert wire.message().status == 400


# --- credentials ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        f"Authorization: Bearer {PLACEHOLDER}",
        f"X-Other: {PLACEHOLDER}",
        "Authorization: Basic " + base64.b64encode(f"u:{PLACEHOLDER}".encode()).decode(),
    ],
)
def test_the_placeholder_sent_to_another_host_is_refused(make: HouseMaker, header: str) -> None:
    with Origin(nobody) as origin, make(origins={OTHER: origin}) as house, house.tunnel("other.test") as wire:
        wire.send(get("/", header, host="other.test"))
        answer = wire.message()
        assert (answer.status, answer.get("x-moat-denied")) == (403, "credential-host")
        assert house.credentials.asked == []


def test_the_placeholder_in_a_target_or_over_plain_http_is_refused(make: HouseMaker) -> None:
    with Origin(nobody) as origin, make(origins={OTHER: origin, PLAIN: origin}) as house:
        with house.tunnel("other.test") as wire:
            wire.send(get(f"/?token={PLACEHOLDER}", host="other.test"))
            assert wire.message().get("x-moat-denied") == "credential-host"
        with house.connect() as wire:
            wire.send(
                f"GET http://api.test/ HTTP/1.1\r\nHost: api.test\r\nAuthorization: {PLACEHOLDER}\r\n\r\n".encode()
            )
            assert wire.message().get("x-moat-denied") == "credential-host"
        assert house.credentials.asked == []


def test_trace_is_refused(make: HouseMaker) -> None:
    """Its answer would be the request, credential included."""
    with Origin(nobody) as origin, make(origins={API: origin}) as house, house.tunnel() as wire:
        wire.send(get().replace(b"GET", b"TRACE"))
        assert wire.message().status == 405


# --- bytes ---------------------------------------------------------------------------------------


def test_no_malformed_head_reaches_the_upstream(make: HouseMaker) -> None:
    """Every head of the corpus that is refused, in a tunnel: its status, and no connection upstream."""
    evil = [case for case in cases.everything() if case.reads == "request" and case.refused_in_head]
    assert len(evil) > 200
    wrong: list[str] = []
    with Origin(nobody) as origin, make(origins={("a.example", 443): origin}, rules=()) as house:
        for case in evil:
            with house.tunnel("a.example") as wire:
                wire.send(case.wire)
                try:
                    answer = wire.message()
                except ConnectionError as error:
                    wrong.append(f"{case.name}: {error}")
                    continue
                if (answer.status, answer.get("x-moat-denied")) != (case.verdict.status, "malformed"):
                    wrong.append(f"{case.name}: {answer}")
        assert origin.accepted == 0
    assert wrong == []


def test_a_head_of_a_megabyte_is_answered_although_it_is_still_being_sent(make: HouseMaker) -> None:
    with Origin(nobody) as origin, make(origins={API: origin}) as house, house.tunnel() as wire:
        wire.send(b"GET / HTTP/1.1\r\nHost: api.test\r\nX: " + b"a" * 1_000_000)
        time.sleep(0.2)
        wire.send(b"a" * 1_000_000)  # fails when we close without lingering: a client would look no further
        assert wire.message().status == 431


def test_a_slow_head_is_cut_off(make: HouseMaker) -> None:
    limits = replace(Limits(), request_head_timeout=0.6)
    with (
        Origin(nobody) as origin,
        make(origins={API: origin}, limits=limits) as house,
        house.tunnel() as wire,
    ):
        start = time.monotonic()
        with contextlib.suppress(OSError):
            for byte in get("/" + "a" * 500):
                wire.send(bytes([byte]))
                time.sleep(0.05)
        assert 0.4 < time.monotonic() - start < 4  # the whole head would take 25 s


def test_bytes_that_are_not_http_are_answered(make: HouseMaker) -> None:
    with Origin(nobody) as origin, make(origins={("api.test", 25): origin}) as house:
        with house.connected("api.test:25") as wire:
            wire.send(b"EHLO here\r\n")
            assert wire.message().status == 400


def test_a_tls_handshake_that_stalls_is_cut_off(make: HouseMaker) -> None:
    limits = replace(Limits(), tls_handshake_timeout=0.5)
    with make(limits=limits) as house, house.connected("api.test:443") as wire:
        wire.send(b"\x16\x03\x01\x02\x00")
        with contextlib.suppress(ConnectionResetError):
            assert wire.rest() == b""
        assert "timed out" in house.event().error


# --- the token of TCP listeners ------------------------------------------------------------------


def test_a_token_is_asked_for_as_clients_expect(make: HouseMaker, origin: Origin) -> None:
    good = base64.b64encode(b"anyone:s3cret").decode()
    with make(origins={API: origin, PLAIN: origin}, token="s3cret") as house:
        with house.connect() as wire:  # git asks without, gets 407, and asks again on the same connection
            wire.send(b"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n\r\n")
            answer = wire.message()
            assert (answer.status, answer.get("proxy-authenticate")) == (407, 'Basic realm="moat"')
            wire.send(
                f"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\nProxy-Authorization: Basic {good}\r\n\r\n".encode()
            )
            assert wire.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200")
            inner = wire.tls(house.trust, "api.test")
            inner.send(get())
            seen = inner.message().json()
            assert not any(name.lower().startswith("proxy-") for name, _ in seen["headers"])
            inner.close()
        assert house.event().status == 200
        bad = [
            "",
            "Proxy-Authorization: Basic " + base64.b64encode(b"s3cret:").decode(),
            "Proxy-Authorization: Basic " + base64.b64encode(b"x:S3cret").decode(),
            "Proxy-Authorization: Basic !!!",
            "Proxy-Authorization: s3cret",
            "Proxy-Authorization: Bearer s3cre",
            f"Proxy-Authorization: Basic {good}\r\nProxy-Authorization: Basic {good}",
        ]
        for header in bad:
            with house.connect() as wire:
                lines = ["GET http://api.test/ HTTP/1.1", "Host: api.test", *filter(None, [header]), "", ""]
                wire.send("\r\n".join(lines).encode())
                assert wire.message().status == 407
        with house.connected("api.test:443", "Proxy-Authorization: Bearer s3cret"):
            pass
        assert origin.accepted == 1


# --- this machine --------------------------------------------------------------------------------


def host_service(wire: Wire) -> None:
    wire.send(b"220 ready\r\n")  # the server speaks first
    while data := wire.receive():
        wire.send(data.upper())


def test_an_opened_port_of_this_machine_is_an_opaque_tunnel(make: HouseMaker) -> None:
    with Origin(host_service) as service:
        ports = frozenset({service.port})
        with make(policy=Policy(host_ports=ports), options=UpstreamOptions(host_ports=ports)) as house:
            with house.connected(f"moat-host:{service.port}") as wire:
                assert wire.until(b"\n") == b"220 ready\r\n"
                wire.send(b"hello")
                assert wire.exactly(5) == b"HELLO"
                wire.finish()
                assert wire.rest() == b""
            event = house.event()
            assert (event.method, event.url, event.status) == ("CONNECT", f"moat-host:{service.port}", 200)
            assert (event.request_bytes, event.response_bytes) == (5, 16)


def test_an_opened_port_of_this_machine_speaks_http_too(make: HouseMaker) -> None:
    with Origin(echo) as service:
        ports = frozenset({service.port})
        with make(policy=Policy(host_ports=ports), options=UpstreamOptions(host_ports=ports)) as house:
            with house.connect() as wire:
                target = f"moat-host:{service.port}"
                wire.send(f"GET http://{target}/x HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
                assert wire.message().json()["start"] == "GET /x HTTP/1.1"


def test_other_ports_of_this_machine_stay_closed(make: HouseMaker) -> None:
    with Origin(nobody) as service, Origin(host_service) as opened:
        ports = frozenset({opened.port})
        with make(policy=Policy(host_ports=ports), options=UpstreamOptions(host_ports=ports)) as house:
            with house.connected(f"moat-host:{service.port}") as wire:
                wire.send(get(host=f"moat-host:{service.port}"))
                assert wire.message().status == 403
            with house.connect() as wire:
                target = f"moat-host:{service.port}"
                wire.send(f"GET http://{target}/ HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
                assert wire.message().status == 403
        assert service.accepted == 0


def test_a_dead_port_of_this_machine_is_a_502(make: HouseMaker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    ports = frozenset({port})
    with make(policy=Policy(host_ports=ports), options=UpstreamOptions(host_ports=ports)) as house:
        with house.connect() as wire:
            wire.send(f"CONNECT moat-host:{port} HTTP/1.1\r\nHost: moat-host:{port}\r\n\r\n".encode())
            assert wire.message().status == 502
        assert "refused" in house.event().error


# --- certificates of upstreams -------------------------------------------------------------------


def test_an_upstream_that_cannot_be_verified_is_refused_with_the_reason(make: HouseMaker) -> None:
    """Wrong name, unknown CA: a 502 that says which, and never a byte of the request."""
    from tests.proxy.peers import TestCA

    contexts = {
        "hostname mismatch": None,
        "unable to get local issuer": TestCA("Somebody else").context("api.test"),
    }
    for reason, context in contexts.items():
        with contextlib.ExitStack() as stack:
            if context is None:
                origin = stack.enter_context(tls_origin(nobody, "wrong.test"))
            else:
                origin = stack.enter_context(Origin(nobody, context=context))
            house = stack.enter_context(make(origins={API: origin}))
            wire = stack.enter_context(house.tunnel())
            wire.send(get())
            answer = wire.message()
            assert (answer.status, answer.get("x-moat-error")) == (502, "certificate")
            assert reason in answer.json()["error"].lower()
            assert "upstream.ca_bundle" in answer.json()["hint"]
            assert answer.get("x-should-retry") == "false"
            assert origin.failures == []


def test_an_upstream_that_speaks_no_tls_is_a_502(make: HouseMaker) -> None:
    with Origin(lambda wire: wire.send(reply(200))) as origin, make(origins={API: origin}) as house:
        with house.tunnel() as wire:
            wire.send(get())
            assert wire.message().get("x-moat-error") == "tls"


def test_the_runs_ca_is_not_trusted_upstream(make: HouseMaker) -> None:
    """A sandbox that could serve as its own upstream must not be verified by its own CA."""
    with make() as house:
        context = house.portal.call(lambda: house.ca.server_context("api.test"))
        with Origin(nobody, context=context) as origin, make(origins={API: origin}) as second:
            with second.tunnel() as wire:
                wire.send(get())
                assert wire.message().get("x-moat-error") == "certificate"


def test_a_sandbox_sees_a_certificate_of_its_own_run_for_the_very_host(make: HouseMaker) -> None:
    with make() as house:
        with house.tunnel() as wire:
            certificate = wire.sock.getpeercert()
            assert ("DNS", "api.test") in certificate["subjectAltName"]
        another = client_context(RunCA.generate("run_other").certificate_pem)
        with pytest.raises(ssl.SSLCertVerificationError):
            house.tunnel(context=another)
