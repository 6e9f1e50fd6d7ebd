"""The user's way out: extra roots, an upstream proxy, several addresses, time."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from moat.errors import ConfigError
from moat.proxy import Limits, Upstream, UpstreamOptions
from moat.proxy.dialling import _RESOLVERS
from tests.proxy.conftest import HouseMaker, tls_origin
from tests.proxy.peers import Origin, TestCA, Wire, echo
from tests.proxy.test_exchange import API, get


class HTTPProxy:
    """A CONNECT proxy that leads everything to one place, and remembers what it was asked."""

    def __init__(self, origin: Origin, *, login: str | None = None) -> None:
        self.asked: list[str] = []
        self._origin = origin
        self._login = login

    def __call__(self, wire: Wire) -> None:
        request = wire.message(head_only=True)
        self.asked.append(request.start)
        expected = "Basic " + base64.b64encode((self._login or "").encode()).decode()
        if self._login is not None and request.get("proxy-authorization") != expected:
            wire.send(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
            return
        wire.send(b"HTTP/1.1 200 OK\r\n\r\n")
        with socket.create_connection(self._origin.address) as onward:
            onward.setblocking(False)
            wire.sock.setblocking(False)
            _splice(wire.sock, onward)


def _splice(one: socket.socket, two: socket.socket) -> None:
    import select

    while True:
        for ready in select.select([one, two], [], [], 10)[0]:
            data = ready.recv(65536)
            if not data:
                return
            other = two if ready is one else one
            other.setblocking(True)
            other.sendall(data)
            other.setblocking(False)


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_everything_goes_through_the_users_proxy(make: HouseMaker, origin: Origin, scheme: str) -> None:
    async def resolver(host: str, port: int) -> Sequence[str]:
        if host == "127.0.0.1":
            return [host]
        raise socket.gaierror(-2, "Name or service not known")  # as behind a company proxy

    with Origin(echo) as plain:
        proxy = HTTPProxy(origin if scheme == "https" else plain, login="me:pass word")
        with Origin(proxy) as proxied:
            options = UpstreamOptions(proxy=f"http://me:pass%20word@127.0.0.1:{proxied.port}")
            with make(options=options, resolver=resolver) as house:
                if scheme == "https":
                    with house.tunnel() as wire:
                        wire.send(get())
                        seen = wire.message().json()
                else:
                    with house.connect() as wire:
                        wire.send(b"GET http://api.test/ HTTP/1.1\r\nHost: api.test\r\n\r\n")
                        seen = wire.message().json()
                assert not any(name.lower().startswith("proxy-") for name, _ in seen["headers"])
        assert proxy.asked == [f"CONNECT api.test:{443 if scheme == 'https' else 80} HTTP/1.1"]


def test_the_address_guard_holds_in_front_of_the_users_proxy(make: HouseMaker, origin: Origin) -> None:
    async def resolver(host: str, port: int) -> Sequence[str]:
        return ["10.1.2.3"] if host == "internal.test" else ["127.0.0.1"]

    proxy = HTTPProxy(origin)
    with Origin(proxy) as proxied:
        options = UpstreamOptions(proxy=f"http://127.0.0.1:{proxied.port}")
        with make(options=options, resolver=resolver) as house:
            for target in ("internal.test", "169.254.169.254"):
                with house.connected(f"{target}:80") as wire:
                    wire.send(get(host=f"{target}"))
                    assert wire.message().get("x-moat-denied") == "address"
    assert proxy.asked == []


def test_a_users_proxy_that_refuses_is_named(make: HouseMaker, origin: Origin) -> None:
    async def resolver(host: str, port: int) -> Sequence[str]:
        return ["93.184.216.34"] if host == "api.test" else ["127.0.0.1"]

    with Origin(HTTPProxy(origin, login="a:b")) as proxied:
        options = UpstreamOptions(proxy=f"http://127.0.0.1:{proxied.port}")
        with make(options=options, resolver=resolver) as house, house.tunnel() as wire:
            wire.send(get())
            answer = wire.message()
            assert (answer.status, answer.get("x-moat-error")) == (502, "proxy")
            assert "407" in answer.json()["error"]
            assert "upstream.proxy" in answer.json()["hint"]


def test_a_ca_bundle_adds_roots(make: HouseMaker, tmp_path: Path) -> None:
    company = TestCA("Company")
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(company.pem)
    with Origin(echo, context=company.context("api.test")) as origin:
        with (
            make(origins={API: origin}, options=UpstreamOptions(ca_bundle=bundle)) as house,
            house.tunnel() as wire,
        ):
            wire.send(get())
            assert wire.message().status == 200


def test_a_ca_bundle_that_is_none_is_told(make: HouseMaker, tmp_path: Path) -> None:
    with tls_origin(echo) as origin:
        options = UpstreamOptions(ca_bundle=tmp_path / "missing.pem")
        with make(origins={API: origin}, options=options) as house, house.tunnel() as wire:
            wire.send(get())
            answer = wire.message()
            assert answer.status == 502
            assert "upstream.ca_bundle" in answer.json()["error"]


@pytest.mark.parametrize(
    "url", ["socks5://h:1", "https://h:1", "h:1", "http://", "http://h:1/path", "http://h:x"]
)
def test_a_proxy_that_cannot_be_used_is_told_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Upstream(UpstreamOptions(proxy=url.replace("//h", "//user:hunter2@h")))
    assert "hunter2" not in str(caught.value)


def test_a_name_that_cannot_be_resolved(make: HouseMaker) -> None:
    async def resolver(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(-2, "Name or service not known")

    with make(resolver=resolver) as house, house.tunnel("nowhere.test") as wire:
        wire.send(get(host="nowhere.test"))
        answer = wire.message()
        assert (answer.status, answer.get("x-moat-error")) == (502, "dns")
        assert "nowhere.test cannot be resolved: name or service not known" in answer.json()["error"]


def test_a_resolver_that_hangs_is_a_504(make: HouseMaker) -> None:
    async def resolver(host: str, port: int) -> Sequence[str]:
        await anyio.sleep(60)
        return []

    limits = replace(Limits(), dial_timeout=0.5)
    with make(resolver=resolver, limits=limits) as house, house.tunnel("slow.test") as wire:
        start = time.monotonic()
        wire.send(get(host="slow.test"))
        assert wire.message().status == 504
        assert time.monotonic() - start < 3


def test_the_next_address_is_tried(make: HouseMaker) -> None:
    """connect_to may name a host with several addresses; the first one that answers is used."""
    asked: list[str] = []

    async def resolver(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.99", "127.0.0.1"]  # nothing listens on the first: the origin is bound to 127.0.0.1

    with tls_origin(echo) as origin:
        options = UpstreamOptions(connect_to={API: ("elsewhere.test", origin.port)})
        with make(options=options, resolver=resolver) as house, house.tunnel() as wire:
            wire.send(get())
            assert wire.message().status == 200
    assert asked == ["elsewhere.test"]


def test_nothing_listens(make: HouseMaker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = taken.getsockname()
    with make(options=UpstreamOptions(connect_to={API: address})) as house, house.tunnel() as wire:
        wire.send(get())
        answer = wire.message()
        assert (answer.status, answer.get("x-moat-error")) == (502, "connect")
        assert "refused" in answer.json()["error"]


def test_idle_connections_are_bounded_and_end(make: HouseMaker) -> None:
    with tls_origin(echo, *(f"h{n}.test" for n in range(5))) as origin:
        origins = {(f"h{n}.test", 443): origin for n in range(5)}
        limits = replace(Limits(), upstream_idle=3, upstream_idle_timeout=0.6)
        with make(origins=origins, limits=limits, rules=()) as house:
            for n in range(5):
                with house.tunnel(f"h{n}.test") as wire:
                    wire.send(get(host=f"h{n}.test"))
                    assert wire.message().status == 200
            time.sleep(0.2)
            assert len(origin._open) <= 3
            time.sleep(1.2)
            assert len(origin._open) == 0


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_only_so_many_names_are_looked_up_at_a_time(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that hangs holds a thread for each: `_RESOLVERS` of them, however many wait."""
    go, running, most = threading.Event(), [], []

    def getaddrinfo(*_arguments: object, **_options: object) -> list[object]:
        running.append(1)
        most.append(len(running))
        go.wait(10)
        running.pop()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 443))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def main() -> None:
        upstream = Upstream()
        async with anyio.create_task_group() as tasks:
            for number in range(40):
                tasks.start_soon(upstream._dialler._resolve, f"h{number}.test", 443)
            with anyio.move_on_after(10):
                while len(running) < _RESOLVERS:
                    await anyio.sleep(0.01)
            await anyio.sleep(0.1)  # in which one more would begin
            go.set()

    anyio.run(main, backend=backend)
    assert (max(most), len(most)) == (_RESOLVERS, 40)
