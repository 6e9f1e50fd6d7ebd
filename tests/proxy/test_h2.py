"""Clients that speak HTTP/2, towards origins that speak HTTP/1.1: real clients, and hostile ones."""

from __future__ import annotations

import contextlib
import queue
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from moat.proxy import Policy
from moat.rules import parse_host_rule
from tests.proxy.conftest import PLACEHOLDER, SECRET, House, HouseMaker, tls_origin
from tests.proxy.h2peers import Client
from tests.proxy.peers import Origin, Wire, reply

API, OTHER = ("api.test", 443), ("other.test", 443)
CaFile = Callable[[House], Path]


# --- real clients --------------------------------------------------------------------------------


def test_curl_and_httpx_switch_to_http2(make: HouseMaker, origin: Origin, ca_file: CaFile) -> None:
    with make(origins={API: origin}) as house:
        curl = ["curl", "-sS", "--cacert", str(ca_file(house)), "-x", f"http://127.0.0.1:{house.port}"]
        told = ["-w", "%{http_version} %{http_code}", "-d", "a=b", "https://api.test/p?q=1"]
        done = subprocess.run([*curl, *told], capture_output=True, text=True, timeout=20, env={})
        assert done.stdout.endswith("2 200"), done
        assert '"start": "POST /p?q=1 HTTP/1.1"' in done.stdout
        assert SECRET not in done.stdout
        event = house.event()
        assert (event.protocol, event.status, event.grants, event.request_bytes) == ("h2", 200, ("demo",), 3)
        assert event.url == "https://api.test/p?q=1"
        trust = ssl.create_default_context(cafile=str(ca_file(house)))
        with httpx.Client(http2=True, proxy=f"http://127.0.0.1:{house.port}", verify=trust) as client:
            answers = [client.post("https://api.test/", content=b"x" * 300_000) for _ in range(2)]
            head = client.head("https://api.test/")
        assert [(answer.http_version, answer.json()["body"]) for answer in answers] == [
            ("HTTP/2", "x" * 300_000)
        ] * 2
        assert (head.status_code, head.content, int(head.headers["content-length"]) > 100) == (200, b"", True)
    assert origin.accepted == 1  # pooled, as for any other client


# --- the same rules ------------------------------------------------------------------------------


def test_the_credential_goes_up_and_does_not_come_back(make: HouseMaker, origin: Origin) -> None:
    with make(origins={API: origin}) as house, Client.through(house) as client:
        answer = client.get(("authorization", f"Bearer {PLACEHOLDER}"), path="/gzip")
        assert answer.status == 200
        assert "content-encoding" not in answer.headers
        assert SECRET.encode() not in answer.body
        assert SECRET not in str(answer.headers)
        assert b"*" * len(SECRET) in answer.body
        assert house.credentials.asked == ["demo"]


def test_a_placeholder_on_its_way_elsewhere_is_refused(make: HouseMaker, origin: Origin) -> None:
    with make(origins={API: origin, OTHER: origin}) as house, Client.through(house, "other.test") as client:
        answer = client.get(("x-key", PLACEHOLDER), authority="other.test")
        assert (answer.status, answer.headers["x-moat-denied"]) == (403, "credential-host")
        assert origin.accepted == 0


def test_policy_refuses_a_stream_and_not_its_connection(make: HouseMaker, origin: Origin) -> None:
    policy = Policy(mode="strict", hosts=(parse_host_rule("api.test", ["allow GET /open/**"]),))
    with make(origins={API: origin}, policy=policy) as house, Client.through(house) as client:
        streams = [client.ask(path=path) for path in ("/open/a", "/shut", "/open/b")]
        assert [client.until(stream).status for stream in streams] == [200, 403, 200]
        events = [house.event() for _ in streams]
        assert sorted(event.denial.code if event.denial else "" for event in events) == ["", "", "policy"]


def test_a_host_that_is_not_open_is_refused_inside(make: HouseMaker, origin: Origin) -> None:
    with make(origins={API: origin}, policy=Policy(mode="strict")) as house:
        with Client.through(house) as client:
            assert client.get().status == 403
    assert origin.accepted == 0


def test_another_authority_is_misdirected(make: HouseMaker, origin: Origin) -> None:
    """Coalescing: the certificate is one host's, whatever a client believes. 421 makes it connect anew."""
    with make(origins={API: origin, OTHER: origin}) as house, Client.through(house) as client:
        assert client.get(authority="other.test").status == 421
        assert house.event().denial.code == "authority"
        assert origin.accepted == 0
        assert client.get(authority="API.test:443").status == 200  # the same one


USUAL = [(":method", "GET"), (":scheme", "https"), (":authority", "api.test"), (":path", "/")]


def without(name: str, *more: tuple[str, str]) -> list[tuple[str, str]]:
    return [*(field for field in USUAL if field[0] != name), *more]


EVIL: dict[str, list[tuple[str, str]]] = {
    "line end in a value": [*USUAL, ("x", "a\r\nhost: other.test")],
    "lf in a value": [*USUAL, ("x", "a\nb")],
    "nul in a value": [*USUAL, ("x", "a\0b")],
    "space around a value": [*USUAL, ("x", " a")],
    "capital in a name": [*USUAL, ("X-Evil", "a")],
    "space in a name": [*USUAL, ("x y", "a")],
    "colon in a name": [*USUAL, ("x:y", "a")],
    "line end in a name": [*USUAL, ("x: y\r\nz", "a")],
    "empty name": [*USUAL, ("", "a")],
    "request line in the path": without(":path", (":path", "/ HTTP/1.1\r\nx: y")),
    "space in the path": without(":path", (":path", "/a b")),
    "fragment in the path": without(":path", (":path", "/a#b")),
    "absolute path": without(":path", (":path", "https://other.test/")),
    "empty path": without(":path", (":path", "")),
    "no path": without(":path"),
    "asterisk": without(":path", (":path", "*")),
    "line end in the method": without(":method", (":method", "GET / HTTP/1.1\r\nx:")),
    "no method": without(":method"),
    "trace": without(":method", (":method", "TRACE")),
    "no authority": without(":authority"),
    "line end in the authority": without(":authority", (":authority", "api.test\r\nx: y")),
    "user in the authority": without(":authority", (":authority", "me@api.test")),
    "another host field": [*USUAL, ("host", "other.test")],
    "two host fields": without(":authority", ("host", "api.test"), ("host", "api.test")),
    "http scheme": without(":scheme", (":scheme", "http")),
    "no scheme": without(":scheme"),
    "doubled path": [*USUAL, (":path", "/other")],
    "late pseudo field": [*USUAL[:3], ("x", "a"), USUAL[3]],
    "unknown pseudo field": [(":status", "200"), *USUAL],
    "extended connect": [(":method", "CONNECT"), (":protocol", "websocket"), *USUAL[1:]],
    "transfer-encoding": [*USUAL, ("transfer-encoding", "chunked")],
    "connection": [*USUAL, ("connection", "x")],
    "keep-alive": [*USUAL, ("keep-alive", "1")],
    "upgrade": [*USUAL, ("upgrade", "websocket")],
    "te": [*USUAL, ("te", "gzip")],
    "length without a body": [*USUAL, ("content-length", "5")],
    "two lengths": [*USUAL, ("content-length", "0"), ("content-length", "0")],
    "odd length": [*USUAL, ("content-length", "+0")],
    "look-alike": [*USUAL, ("content_length", "5")],
    "expectation": [*USUAL, ("expect", "something")],
    "large": [*USUAL, *((f"x{number}", "a" * 30) for number in range(300))],
}


def test_what_is_no_request_is_refused_by_itself(make: HouseMaker, origin: Origin) -> None:
    """Seen failing with `h2_fields._refuse` doing nothing."""
    with make(origins={API: origin, OTHER: origin}) as house, Client.through(house) as client:
        for what, fields in EVIL.items():
            answer = client.get(fields=fields)
            assert 400 <= answer.status < 500, (what, answer)
            assert answer.headers["x-moat-denied"] == "malformed", what
            event = house.event()
            assert (event.denial.code, event.protocol) == ("malformed", "h2"), what
        assert origin.accepted == 0
        connect = client.get(fields=[(":method", "CONNECT"), (":authority", "other.test:443")])
        assert connect.status == 421
        assert origin.accepted == 0
        assert client.get().status == 200  # the connection is as good as before


@pytest.mark.parametrize("length", ["4", "6", None])
def test_a_body_is_as_long_as_it_said(make: HouseMaker, length: str | None) -> None:
    """RFC 9113 §8.1.1. What is too long never leaves; what is too short, or cut, never looks whole."""
    got: queue.Queue[bytes] = queue.Queue()

    def script(wire: Wire) -> None:
        got.put(wire.until(b"\r\n\r\n"))
        with contextlib.suppress(ConnectionError):
            got.put(wire.exactly(1000))
        got.put(wire.buffer)

    with tls_origin(script) as origin, make(origins={API: origin}) as house, Client.through(house) as client:
        extra = [("content-length", length)] if length else []
        stream = client.ask(*extra, method="POST", body=b"123", end=False)
        assert got.get(timeout=10)  # under way
        if length:
            client.send(stream, b"45", end=True)
            answer = client.until(stream)
            assert (answer.status, answer.ended, answer.reset) == (0, False, 1)  # PROTOCOL_ERROR
            assert house.event().denial.code == "malformed"
        else:
            client.h2.reset_stream(stream)
            client.flush()
        assert house.event().error == "client went away"
        cut = {"4": [b"123"], "6": [b"123", b"12345"], None: [b"3\r\n123\r\n"]}
        assert got.get(timeout=10) in [b"", *cut[length]]  # a reset overtakes what was not read yet


# --- responses -----------------------------------------------------------------------------------


def test_trailers_interim_answers_and_bodiless_ones(make: HouseMaker) -> None:
    def script(wire: Wire) -> None:
        for status in (204, 304):
            wire.message()
            wire.send(f"HTTP/1.1 {status} X\r\nETag: 1\r\n\r\n".encode())
        wire.message()
        wire.send(b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n")
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nKeep-Alive: 5\r\n\r\n")
        wire.send(b"3\r\nabc\r\n0\r\nX-Sum: 6\r\n\r\n")
        wire.message()
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        wire.send(b"3\r\nabc\r\n0\r\nKeep-Alive: 5\r\n\r\n")  # a trailer that does not exist in HTTP/2

    with tls_origin(script) as origin, make(origins={API: origin}) as house, Client.through(house) as client:
        for status in (204, 304):
            answer = client.get()
            assert (answer.status, answer.body, answer.ended) == (status, b"", True)
        answer = client.get()
        assert (answer.interim, answer.status, answer.body) == ([103], 200, b"abc")
        assert answer.trailers == {"x-sum": "6"}
        assert not {"keep-alive", "transfer-encoding", "connection"} & answer.headers.keys()
        answer = client.get()
        assert (answer.body, answer.ended, answer.trailers) == (b"abc", True, {})


@pytest.mark.parametrize("framing", ["Content-Length: 10", "Transfer-Encoding: chunked", "X: until-close"])
def test_a_cut_response_never_looks_whole(make: HouseMaker, framing: str) -> None:
    def script(wire: Wire) -> None:
        wire.message()
        body = b"5\r\n12345\r\n" if "chunked" in framing else b"12345"
        wire.send(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n%b" % (framing.encode(), body))
        wire.cut()

    with tls_origin(script) as origin, make(origins={API: origin}) as house, Client.through(house) as client:
        answer = client.get()
        assert (answer.status, answer.ended, answer.reset) == (200, False, 2)  # INTERNAL_ERROR
        assert house.event().status == 200


def test_an_early_answer_ends_the_request(make: HouseMaker) -> None:
    def script(wire: Wire) -> None:
        wire.until(b"\r\n\r\n")
        wire.send(reply(413, b"too large"))
        wire.rest()

    with tls_origin(script) as origin, make(origins={API: origin}) as house, Client.through(house) as client:
        answer = client.until(client.ask(method="POST", body=b"x" * 1000, end=False))
        assert (answer.status, answer.body, answer.ended) == (413, b"too large", True)
        while answer.reset is None:
            client.receive()
        assert answer.reset == 0  # NO_ERROR: stop sending, what you have is whole
