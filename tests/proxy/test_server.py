"""Listeners, limits, start and end; that nothing is left behind; real curl and git."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from moat.grants import InjectionRule
from moat.proxy import Authority, Limits, Policy, UpstreamOptions
from tests.proxy.conftest import PLACEHOLDER, SECRET, House, HouseMaker, tls_origin
from tests.proxy.peers import Origin, Wire, echo, reply
from tests.proxy.test_exchange import API, PLAIN, get, post


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def settled(house: House, files: int) -> bool:
    """Whether connections and file descriptors are back where they were, after a moment."""
    for _ in range(100):
        gc.collect()
        if house.proxy.connections == 0 and open_files() <= files:
            return True
        time.sleep(0.05)
    return False


# --- listeners -----------------------------------------------------------------------------------


def test_a_unix_socket_needs_no_token(make: HouseMaker, origin: Origin, tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "p.sock"))
    listener.listen()
    with make(origins={API: origin}, listener=listener, token="s3cret") as house, house.tunnel() as wire:
        wire.send(get())
        assert wire.message().status == 200


def test_a_given_file_descriptor(make: HouseMaker, origin: Origin) -> None:
    made = socket.create_server(("127.0.0.1", 0))
    listener = socket.socket(fileno=os.dup(made.fileno()))
    made.close()
    with make(origins={API: origin}, listener=listener) as house, house.tunnel() as wire:
        wire.send(get())
        assert wire.message().status == 200


def test_captured_connections_go_where_they_were_meant_to(make: HouseMaker, origin: Origin) -> None:
    """No CONNECT: the address that was dialled stands for a name, and TLS has to be for that name."""
    names = {"127.0.0.21": Authority("api.test", 443), "127.0.0.22": Authority("api.test", 80)}
    listener = socket.create_server(("0.0.0.0", 0))
    port = listener.getsockname()[1]

    def authority_of(accepted: socket.socket) -> Authority | None:
        return names.get(accepted.getsockname()[0])

    with Origin(echo) as plain, make(origins={API: origin, PLAIN: plain}) as house:
        serving, _ = house.portal.start_task(
            lambda *, task_status: house.proxy.serve_captured(listener, authority_of, task_status=task_status)
        )

        def dial(address: str) -> Wire:
            return Wire(socket.create_connection((address, port)))

        with dial("127.0.0.21") as raw, raw.tls(house.trust, "api.test") as wire:
            wire.send(get())
            assert wire.message().json()["start"] == "GET / HTTP/1.1"
            assert house.credentials.asked == ["demo"]
        with dial("127.0.0.22") as wire:
            wire.send(get("/plain"))
            assert wire.message().json()["start"] == "GET /plain HTTP/1.1"
        with dial("127.0.0.21") as raw, pytest.raises(OSError):
            raw.tls(house.trust, "other.test")
        with dial("127.0.0.22") as wire:
            wire.send(get(host="other.test"))
            assert wire.message().status == 403
        with dial("127.0.0.23") as wire:  # an address that nobody has asked a name for
            assert wire.rest() == b""
        house.portal.call(house.proxy.aclose)
        serving.result(5)


def test_a_listener_of_a_host_port_is_an_opaque_tunnel(make: HouseMaker) -> None:
    def script(wire: Wire) -> None:
        wire.send(b"hello\n")
        wire.rest()

    listener = socket.create_server(("127.0.0.1", 0))
    with Origin(script) as service:
        ports = frozenset({service.port})
        with make(policy=Policy(host_ports=ports), options=UpstreamOptions(host_ports=ports)) as house:
            serving, _ = house.portal.start_task(
                lambda *, task_status: house.proxy.serve(
                    listener, authority=Authority("moat-host", service.port), task_status=task_status
                )
            )
            with Wire(socket.create_connection(listener.getsockname())) as wire:
                assert wire.until(b"\n") == b"hello\n"
            house.portal.call(house.proxy.aclose)
            serving.result(5)


# --- limits --------------------------------------------------------------------------------------


def test_more_connections_than_the_limit_wait_their_turn(make: HouseMaker, origin: Origin) -> None:
    limits = replace(Limits(), connections=2)
    with make(origins={API: origin}, limits=limits) as house:
        first, second, third = house.connect(), house.connect(), house.connect()
        time.sleep(0.2)
        assert house.proxy.connections == 2
        third.send(b"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n\r\n")
        third.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            third.receive()
        first.close()
        third.sock.settimeout(5)
        assert third.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200")
        second.close()
        third.close()


def test_running_out_of_file_descriptors_is_survived(make: HouseMaker, origin: Origin, monkeypatch) -> None:
    """accept() fails with EMFILE while clients wait; the loop must neither end nor spin."""
    failures = [OSError(24, "Too many open files")] * 3
    calls: list[float] = []

    class Listener(socket.socket):
        def accept(self):
            calls.append(time.monotonic())
            if failures:
                raise failures.pop()
            return super().accept()

    made = socket.create_server(("127.0.0.1", 0))
    listener = Listener(fileno=made.detach())
    with make(origins={API: origin}, listener=listener) as house, house.tunnel() as wire:
        wire.send(get())
        assert wire.message().status == 200
    assert calls[3] - calls[0] > 0.4


def test_a_mistake_of_ours_ends_one_connection(make: HouseMaker, origin: Origin, caplog) -> None:
    boom = [True]

    def ready() -> None:
        if boom:
            boom.clear()
            raise RuntimeError("boom")

    with make(origins={API: origin}, ready=ready) as house:
        with house.connect() as wire:
            wire.send(b"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert wire.rest() == b""
        with house.tunnel() as wire:
            wire.send(get())
            assert wire.message().status == 200
    assert "boom" in caplog.text


# --- end -----------------------------------------------------------------------------------------


def test_aclose_lets_an_exchange_finish_and_closes_what_waits(make: HouseMaker) -> None:
    def script(wire: Wire) -> None:
        wire.message()
        time.sleep(1.0)
        wire.send(reply(200, b"finished"))

    with tls_origin(script) as origin, make(origins={API: origin}) as house:
        idle, busy = house.tunnel(), house.tunnel()
        busy.send(get())
        time.sleep(0.3)
        closing = threading.Thread(target=house.portal.call, args=(house.proxy.aclose, 5.0))
        closing.start()
        assert idle.rest() == b""
        assert busy.message().body == b"finished"
        closing.join(5)
        assert not closing.is_alive()
        assert house.proxy.connections == 0
        with pytest.raises(ConnectionRefusedError):
            house.connect()
        idle.close()
        busy.close()


def test_aclose_ends_what_does_not_finish(make: HouseMaker) -> None:
    with tls_origin(lambda wire: wire.message() and wire.rest() and None) as origin:
        with make(origins={API: origin}) as house, house.tunnel() as wire:
            wire.send(get())
            time.sleep(0.3)
            start = time.monotonic()
            house.portal.call(house.proxy.aclose, 0.3)
            with contextlib.suppress(OSError):
                assert wire.rest() == b""
            assert time.monotonic() - start < 3
            assert house.event().error == "the proxy shut down"


@pytest.mark.parametrize("stage", ["head", "handshake", "resolve", "upload", "wait", "download", "relay"])
def test_cancelled_anywhere_nothing_is_left(make: HouseMaker, stage: str) -> None:
    """The server's task group is cancelled while a connection waits at each kind of await in turn."""

    def script(wire: Wire) -> None:
        request = wire.message(head_only=True)
        if stage == "download":
            wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        if request.get("upgrade"):
            wire.send(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        wire.rest()

    async def resolver(host: str, port: int) -> list[str]:
        await anyio.sleep(60)
        return []

    files = open_files()
    with tls_origin(script) as origin, make(origins={API: origin}, resolver=resolver) as house:
        wire = house.connected("slow.test:443" if stage == "resolve" else "api.test:443")
        if stage == "handshake":
            wire.send(b"\x16\x03\x01\x02\x00")
        elif stage != "head":
            host = "slow.test" if stage == "resolve" else "api.test"
            wire = wire.tls(house.trust, host)
            requests = {
                "resolve": get(host=host),
                "upload": post(100_000) + b"x" * 1000,
                "relay": get("/", "Connection: Upgrade", "Upgrade: websocket"),
            }
            wire.send(requests.get(stage, get()))
        time.sleep(0.4)
        assert house.proxy.connections == 1
        house.portal.call(house.proxy.aclose)
        assert house.proxy.connections == 0
        wire.close()
    gc.collect()
    for _ in range(60):
        if open_files() <= files:
            break
        time.sleep(0.05)
    assert open_files() <= files


def test_thousands_of_exchanges_leave_nothing_behind(make: HouseMaker, origin: Origin) -> None:
    """Good, refused, dropped and broken ones; afterwards file descriptors and tasks are where they were."""
    with make(origins={API: origin}) as house:
        with house.tunnel() as wire:
            wire.send(get())
            wire.message()
        assert settled(house, 10**6)
        time.sleep(0.3)
        files = open_files()
        tasks = house.portal.call(_tasks)

        def client(number: int) -> None:
            for turn in range(25):
                with house.tunnel() as wire:
                    for _ in range(16):
                        wire.send(post(3) + b"abc" if number % 2 else get())
                        assert wire.message().status == 200
                    match turn % 4:
                        case 0:
                            wire.send(get(host="wrong.test"))
                            assert wire.message().status == 403
                        case 1:
                            wire.send(b"GET / HTTP/1.1\r\nHost: api")
                            wire.reset()
                        case 2:
                            wire.send(post(1000) + b"abc")
                            wire.reset()

        threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
        assert len(house.events) > 3000
        assert sum(event.status == 200 for event in house.events) >= 8 * 25 * 16
        assert settled(house, files + 20)  # pooled upstream connections, both ends of them
        assert house.portal.call(_tasks) <= tasks


async def _tasks() -> int:
    return len(anyio.get_running_tasks())


# --- real clients --------------------------------------------------------------------------------


def _run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_curl(make: HouseMaker, origin: Origin, ca_file, tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(b"u" * 3_000_000)
    with make(origins={API: origin}, token="s3cret") as house:
        proxy = f"http://run:s3cret@127.0.0.1:{house.port}"
        common = ("curl", "-sS", "--proxy", proxy, "--cacert", str(ca_file(house)))
        answer = _run(
            *common, "--compressed", "-H", f"Authorization: Bearer {PLACEHOLDER}", "https://api.test/x"
        )
        assert answer.stderr == ""
        assert dict(json.loads(answer.stdout)["headers"])["authorization"].endswith("*" * len(SECRET))
        # curl waits for 100-continue with bodies of this size, for up to a second
        answer = _run(*common, "--data-binary", f"@{upload}", "https://api.test/up")
        assert len(json.loads(answer.stdout)["body"]) == 3_000_000
        answer = _run(*common, "-o", "/dev/null", "-w", "%{http_code}", "https://127.0.0.1/")
        assert (answer.stdout, answer.stderr) == ("403", "")
        answer = _run("curl", "-sS", "--proxy", f"http://127.0.0.1:{house.port}", "https://api.test/")
        assert "407" in answer.stderr


@pytest.fixture
def git_origin(tmp_path: Path) -> Iterator[Origin]:
    """Smart HTTP over TLS, through `git http-backend`; wants the real credential."""
    root = tmp_path / "repositories"
    bare = root / "demo.git"
    subprocess.run(["git", "init", "-q", "--bare", str(bare)], check=True)
    subprocess.run(["git", "-C", str(bare), "config", "http.receivepack", "true"], check=True)

    def script(wire: Wire) -> None:
        import base64

        good = "Basic " + base64.b64encode(f"x-access-token:{SECRET}".encode()).decode()
        while True:
            try:
                request = wire.message()
            except ConnectionError:
                return
            if request.get("authorization") != good:
                wire.send(reply(401, b"no", 'WWW-Authenticate: Basic realm="git"'))
                continue
            path, _, query = request.target.partition("?")
            result = subprocess.run(
                ["git", "http-backend"],
                env={
                    "PATH": os.environ["PATH"],
                    "GIT_PROJECT_ROOT": str(root),
                    "GIT_HTTP_EXPORT_ALL": "1",
                    "PATH_INFO": path,
                    "QUERY_STRING": query,
                    "REQUEST_METHOD": request.method,
                    "CONTENT_TYPE": request.get("content-type") or "",
                    "HTTP_CONTENT_ENCODING": request.get("content-encoding") or "",
                    "GIT_PROTOCOL": request.get("git-protocol") or "",
                    "REMOTE_USER": "demo",
                    "REMOTE_ADDR": "127.0.0.1",
                },
                input=request.body,
                capture_output=True,
            )
            head, _, body = result.stdout.partition(b"\r\n\r\n")
            headers = [line for line in head.decode().split("\r\n") if not line.startswith("Status:")]
            status = 404 if b"Status: 404" in head else 200
            wire.send(reply(status, body, *headers))

    with tls_origin(script, "git.test") as origin:
        yield origin


def test_git(make: HouseMaker, git_origin: Origin, ca_file, tmp_path: Path) -> None:
    """Clone and push of a few megabytes (chunked, Expect: 100-continue) with a credential that git never sees."""
    rule = InjectionRule(
        credential="demo",
        hosts=("git.test",),
        header="authorization",
        scheme="basic",
        username="x-access-token",
    )
    with make(origins={("git.test", 443): git_origin}, rules=(rule,), token="s3cret") as house:
        environment = {
            "https_proxy": f"http://run:s3cret@127.0.0.1:{house.port}",
            "GIT_SSL_CAINFO": str(ca_file(house)),
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_CONFIG_NOSYSTEM": "1",
        }
        work = tmp_path / "work"

        def git(*arguments: str) -> None:
            done = _run("git", "-c", "user.name=t", "-c", "user.email=t@t.test", *arguments, **environment)
            assert done.returncode == 0, done.stderr

        git("clone", "-q", "https://git.test/demo.git", str(work))
        (work / "big").write_bytes(os.urandom(3_000_000))
        git("-C", str(work), "add", "big")
        git("-C", str(work), "commit", "-q", "-m", "big")
        git("-C", str(work), "push", "-q", "origin", "HEAD:main")
        git("clone", "-q", "-b", "main", "https://git.test/demo.git", str(tmp_path / "again"))
        assert (tmp_path / "again" / "big").read_bytes() == (work / "big").read_bytes()
        assert set(house.credentials.asked) == {"demo"}
