"""What reaches a server in a sandbox through the gateway, and how: both runtimes, one gateway."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import socket
import struct
import time

import pytest

from tests.endpoints.conftest import PORTS, Place, read_answer

pytestmark = [pytest.mark.embedded, pytest.mark.docker]


def test_a_request_arrives_as_it_was_sent(world: Place, run: str) -> None:
    host = f"web.{run}.localhost"
    got = world.ask(
        host, "/a%2Fb?c=d&e", X_Own="yes", X_Forwarded_For="6.6.6.6", Forwarded="for=6.6.6.6",
        Keep_Alive="timeout=5", Proxy_Authorization="Basic eA==",
    ).json()  # fmt: skip
    assert (got["method"], got["target"]) == ("GET", "/a%2Fb?c=d&e")
    fields = {name.lower(): value for name, value in got["headers"]}
    assert len(fields) == len(got["headers"]), "nothing came twice"
    assert fields.pop("x-own") == "yes"
    assert fields == {
        "host": f"{host}:{world.port}",
        "x-forwarded-for": "127.0.0.1",
        "x-forwarded-proto": "https",
        "x-forwarded-host": f"{host}:{world.port}",
    }


def test_plain_http_on_the_same_port_and_both_addresses(world: Place, run: str) -> None:
    host = f"web.{run}.localhost"
    got = world.ask(host, tls=False, address="::1").json()
    fields = dict(got["headers"])
    assert (fields["X-Forwarded-Proto"], fields["X-Forwarded-For"]) == ("http", "::1")


def test_the_sandbox_knows_its_addresses(world: Place, run: str) -> None:
    env = world.ask(f"web.{run}.localhost").json()["env"]
    base = f"{run}.localhost:{world.port}"
    assert env["MOAT_URL"] == f"https://{base}"
    assert env["MOAT_HOST"] == base
    for name in PORTS:
        assert env[f"MOAT_URL_{name.upper()}"] == f"https://{name}.{base}"
        assert env[f"MOAT_HOST_{name.upper()}"] == f"{name}.{base}"


def test_servers_on_every_loopback_address_are_found(world: Place, run: str) -> None:
    """0.0.0.0 everywhere; [::1] where the sandbox has IPv6, which the `none` network of old engines has not."""
    assert world.ask(f"wide.{run}.localhost").status == 200
    six = world.command("exec", run, "--", "cat", "/proc/net/if_inet6").stdout
    assert run != "alpha" or six, "embedded has it always"
    assert world.ask(f"six.{run}.localhost").status == (200 if six else 502)


def test_two_endpoints_may_lead_to_one_port(world: Place, run: str) -> None:
    assert world.ask(f"same.{run}.localhost").status == 200


def test_keep_alive_is_one_connection_to_the_server_as_well(world: Place, run: str) -> None:
    host = f"web.{run}.localhost"
    seen = set()
    with world.connect(host) as sock:
        for number in range(5):
            sock.sendall(f"GET /{number} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            got = read_answer(sock).json()
            assert got["target"] == f"/{number}"
            seen.add(got["connection"])
    assert len(seen) == 1


def test_pipelined_requests_are_answered_in_order(world: Place, run: str) -> None:
    host = f"web.{run}.localhost"
    with world.connect(host) as sock:
        sock.sendall(b"".join(f"GET /{n} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode() for n in range(3)))
        file = sock.makefile("rb")
        found = []
        for _ in range(3):
            length = 0
            while line := file.readline().strip():
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            found.append(json.loads(file.read(length))["target"])
    assert found == ["/0", "/1", "/2"]


def test_a_big_body_streams_both_ways(world: Place, run: str) -> None:
    """64 MiB each; the gateway must not grow by what it carries."""
    host, size = f"web.{run}.localhost", 64 << 20
    pid = json.loads((world.home.endpoints / "gateway.json").read_bytes())["pid"]
    body = os.urandom(1 << 20) * (size >> 20)
    got = world.ask(host, "/up", method="POST", body=body).json()
    assert (got["size"], got["digest"]) == (size, hashlib.sha256(body).hexdigest())
    answer = world.ask(host, f"/big?{size}")
    assert answer.body == bytes(range(256)) * (size // 256)
    with open(f"/proc/{pid}/status") as file:
        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
    assert peak < 120_000, f"{peak} KiB resident at most"


def test_a_chunked_upload(world: Place, run: str) -> None:
    host = f"web.{run}.localhost"
    with world.connect(host) as sock:
        sock.sendall(f"PUT /x HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for piece in (b"a" * 10, b"b" * 70_000):
            sock.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        sock.sendall(b"0\r\n\r\n")
        assert read_answer(sock).json()["size"] == 70_010


def test_events_arrive_when_they_are_sent(world: Place, run: str) -> None:
    """Five events, 0.3 s apart: none may wait for the next one."""
    host = f"web.{run}.localhost"
    with world.connect(host) as sock:
        sock.sendall(f"GET /events HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\n\r\n".encode())
        seen, times = b"", []
        while b"\r\n0\r\n" not in seen:
            seen += sock.recv(65536)
            while seen.count(b"data: ") > len(times):
                times.append(time.monotonic())
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(times) == 5
    assert all(gap > 0.1 for gap in gaps), gaps


def frame(data: bytes, opcode: int = 1) -> bytes:
    length = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack(">H", len(data))
    return bytes([0x80 | opcode]) + length + b"\0\0\0\0" + data


def test_a_websocket_echoes(world: Place, run: str) -> None:
    host = f"web.{run}.localhost"
    with world.connect(host) as sock:
        key = base64.b64encode(os.urandom(16)).decode()
        sock.sendall(
            f"GET /socket HTTP/1.1\r\nHost: {host}:{world.port}\r\nConnection: keep-alive, Upgrade\r\n"
            f"Upgrade: websocket\r\nOrigin: https://{host}:{world.port}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        file = sock.makefile("rb")
        lines = []
        while line := file.readline().strip():
            lines.append(line)
        assert lines[0].startswith(b"HTTP/1.1 101")
        for text in (b"hello", b"x" * 5000):
            sock.sendall(frame(text))
            first, length = file.read(2)
            assert first == 0x81
            size = length if length < 126 else struct.unpack(">H", file.read(2))[0]
            assert file.read(size) == text
        sock.sendall(frame(b"", 8))
        assert file.read() == b"\x88\x00"


def test_an_answer_before_the_body_has_gone(world: Place, run: str) -> None:
    host = f"web.{run}.localhost"
    with world.connect(host) as sock:
        sock.sendall(f"POST /early HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100000000\r\n\r\n".encode())
        sock.sendall(b"x" * 1000)
        answer = read_answer(sock)
    assert (answer.status, answer.body) == (413, b"size")


def test_an_answer_without_length_ends_with_its_connection(world: Place, run: str) -> None:
    answer = world.ask(f"web.{run}.localhost", "/open-end")
    assert answer.body == b"until the end"


def test_half_an_answer_is_not_taken_for_a_whole_one(world: Place, run: str) -> None:
    with pytest.raises(Exception, match=r"IncompleteRead|EOF occurred"):
        world.ask(f"web.{run}.localhost", "/half")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/close", "the server closed the connection without an answer"),
        ("/nonsense", "the answer is not HTTP"),
    ],
)
def test_a_server_that_fails_is_told(world: Place, run: str, path: str, reason: str) -> None:
    answer = world.ask(f"web.{run}.localhost", path)
    assert answer.status == 502
    assert reason in answer.json()["detail"]


def test_a_server_that_is_not_there_is_told(world: Place, run: str) -> None:
    answer = world.ask(f"nobody.{run}.localhost")
    assert answer.status == 502
    assert answer.headers["retry-after"] == "2"
    assert answer.json() == {
        "error": "The server does not answer",
        "detail": f"Port 3999 in the sandbox of {run}: nothing listens. Its command is running.",
        "run": run, "endpoint": "nobody", "port": 3999, "reason": "nothing listens", "state": "running",
    }  # fmt: skip
    page = world.ask(f"nobody.{run}.localhost", Accept="text/html").body.decode()
    assert '<meta http-equiv="refresh" content="2">' in page
    assert "Port 3999 in the sandbox" in page


def test_head_and_options(world: Place, run: str) -> None:
    host = f"web.{run}.localhost"
    answer = world.ask(host, method="HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["content-length"]) > 10
    assert world.ask(host, method="OPTIONS").json()["method"] == "OPTIONS"
    assert world.ask(f"nobody.{run}.localhost", method="HEAD").body == b""


# --- what the gateway says itself -----------------------------------------------------------------------


def test_the_index_tells_all_runs(world: Place) -> None:
    found = world.ask("localhost").json()["runs"]
    assert [item["name"] for item in found] == ["alpha", "beta"]
    assert found[0]["endpoints"]["web"] == {"url": f"https://web.alpha.localhost:{world.port}", "port": 3000}
    page = world.ask("localhost", Accept="text/html,*/*;q=0.8")
    assert page.headers["content-type"].startswith("text/html")
    text = page.body.decode()
    assert f'href="https://web.beta.localhost:{world.port}"' in text
    assert "<script" not in text
    assert 'src="' not in text


def test_the_index_of_a_run(world: Place, run: str) -> None:
    found = world.ask(f"{run}.localhost").json()
    assert (found["name"], set(found["endpoints"])) == (run, set(PORTS))
    assert world.ask(f"{run}.localhost", "/elsewhere").status == 404


def test_what_is_not_there_is_404_with_what_is(world: Place) -> None:
    answer = world.ask("api.alpha.localhost")
    assert answer.status == 404
    assert [item["name"] for item in answer.json()["runs"]] == ["alpha"]
    answer = world.ask("web.gamma.localhost")
    assert answer.status == 404
    assert [item["name"] for item in answer.json()["runs"]] == ["alpha", "beta"]
    page = world.ask("web.gamma.localhost", Accept="text/html").body.decode()
    assert "No run called gamma" in page


def test_the_list_and_open(world: Place) -> None:
    lines = world.command("list").stdout.splitlines()
    assert lines[0].split() == ["NAME", "RUN", "ID", "STATE", "AGE", "ENDPOINTS"]
    assert f"https://web.alpha.localhost:{world.port}" in next(
        line for line in lines if line.startswith("alpha ")
    )
    assert (
        world.command("open", "beta", "web", "--print").stdout == f"https://web.beta.localhost:{world.port}\n"
    )
    assert world.command("open", "beta", "--print").stdout == f"https://beta.localhost:{world.port}\n"
    assert world.command("open", "--print").stdout == f"https://localhost:{world.port}\n"
    failed = world.command("open", "beta", "api")
    assert failed.returncode == 3
    assert "moat: error: beta has no endpoint 'api'\nmoat: hint: it has web, same" in failed.stderr
    told = json.loads(world.command("open", "--json").stdout)
    assert set(told) == {"alpha", "beta"}


def test_open_starts_the_browser(world: Place, tmp_path) -> None:
    script = tmp_path / "browser"
    script.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/opened; pwd >> {tmp_path}/opened\n')
    script.chmod(0o755)
    done = world.command("open", "alpha", "web", env=world.environment | {"BROWSER": f"{script} %s"})
    assert (done.returncode, done.stdout) == (0, "")
    assert (tmp_path / "opened").read_text() == f"https://web.alpha.localhost:{world.port}\n/\n"


# --- what the gateway refuses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "[::1]", "evil.example", "localhost.evil.example", "web.alpha.localhost.evil.example",
        "a.web.alpha.localhost", "web..localhost", "-.alpha.localhost", "web.alpha.localhost.", "xlocalhost",
        "web.alpha.localhost:1:2", "web.alpha.localhost:x", "web_alpha.localhost", "",
    ],
)  # fmt: skip
def test_a_name_that_is_not_ours_gets_nothing(world: Place, host: str) -> None:
    """DNS rebinding: a page's own name that points at loopback.

    With `match` in place of `fullmatch` in `names`, `web.alpha.localhost.evil.example` reached the server.
    """
    with world.connect("x", tls=False) as sock:
        sock.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = read_answer(sock)
    assert answer.status in {400, 421}
    assert b"alpha" not in answer.body


def test_the_host_of_tls_and_of_http_must_agree(world: Place) -> None:
    with world.connect("web.alpha.localhost") as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: web.beta.localhost\r\nConnection: close\r\n\r\n")
        assert read_answer(sock).status == 421


def test_a_foreign_server_name_gets_no_certificate(world: Place) -> None:
    with pytest.raises(OSError, match="UNRECOGNIZED_NAME"):
        world.connect("evil.example")


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "image"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "cors", "Origin": "https://evil.example"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "iframe"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://web.beta.localhost:8443"},
        {"Origin": "http://localhost:5173"},
        {"Origin": "https://alpha.localhost.evil.example"},
    ],
)
def test_a_page_of_another_site_may_not_ask(world: Place, headers: dict[str, str]) -> None:
    """With `guard.foreign` returning "" every one of these arrives."""
    for method in ("GET", "POST"):
        assert world.ask("web.alpha.localhost", method=method, **headers).status == 403
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Key": "eA=="}
    assert world.ask("web.alpha.localhost", "/socket", **headers, **upgrade).status == 403


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        (
            "GET",
            {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"},
            200,
        ),
        (
            "POST",
            {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"},
            403,
        ),
        ("POST", {"Sec_Fetch_Site": "same-site", "Origin": "https://api.alpha.localhost:8443"}, 200),
        ("POST", {"Sec_Fetch_Site": "same-origin", "Origin": "https://web.alpha.localhost:8443"}, 200),
        ("GET", {"Sec_Fetch_Site": "none", "Sec_Fetch_Mode": "navigate"}, 200),
        ("POST", {"Sec_Fetch_Site": "cross-site", "Origin": "http://web.alpha.localhost:8443"}, 200),
    ],
)
def test_what_the_user_opens_and_the_runs_own_pages_pass(
    world: Place, method: str, headers: dict[str, str], status: int
) -> None:
    assert world.ask("web.alpha.localhost", method=method, **headers).status == status


@pytest.mark.parametrize(
    "request_text",
    [
        "GET / HTTP/1.1\r\nHost: {h}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /evil HTTP/1.1\r\nHost: {h}\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: {h}\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\nGET /evil HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: {h}\r\nHost: web.beta.localhost\r\n\r\n",
        "GET / HTTP/1.1\nHost: {h}\n\n",
        "GET / HTTP/1.1\r\nHost: {h}\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        "GET http://{h}/evil HTTP/1.1\r\nHost: {h}\r\n\r\n",
        "CONNECT {h}:443 HTTP/1.1\r\nHost: {h}\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: {h}\r\n\r\n",
        "GET /evil HTTP/1.1\r\nHost: {h}\r\nX-A: a\r\n b\r\n\r\n",
    ],
    ids=["cl-te", "te", "two-hosts", "bare-lf", "two-lengths", "absolute", "connect", "asterisk", "fold"],
)
def test_an_ambiguous_request_is_refused(world: Place, request_text: str) -> None:
    with world.connect("web.alpha.localhost") as sock:
        sock.sendall(request_text.format(h="web.alpha.localhost").encode())
        answer = read_answer(sock)
        assert answer.status == 400
        assert sock.recv(1000) == b"", "nothing else is answered"


def test_nothing_listens_but_loopback(world: Place) -> None:
    pid = json.loads((world.home.endpoints / "gateway.json").read_bytes())["pid"]
    inodes = set()
    for entry in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{entry}")
        except FileNotFoundError:  # a connection that has ended meanwhile
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    listening = []
    for name in ("tcp", "tcp6"):
        with open(f"/proc/{pid}/net/{name}") as file:
            rows = [line.split() for line in list(file)[1:]]
        listening += [row[1] for row in rows if row[3] == "0A" and row[9] in inodes]
    port = f"{world.port:04X}"
    assert sorted(listening) == sorted([f"0100007F:{port}", f"{'0' * 24}01000000:{port}"])
    for address in {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)} - {
        "127.0.0.1",
        "::1",
    }:
        if not address.startswith("127."):
            with pytest.raises(OSError):
                socket.create_connection((address, world.port), timeout=2).close()
