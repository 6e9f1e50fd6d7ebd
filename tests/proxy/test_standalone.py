"""The proxy for programs: `Proxy.open`, its events, and the pytest fixture, with clients as people have them."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx
import pytest

from moat.grants import InjectionRule
from moat.proxy import ExchangeFinished, Missed, Proxy, Question, UpstreamOptions
from moat.proxy.feed import Feed
from tests.proxy.conftest import tls_origin
from tests.proxy.peers import Origin, echo, world

pytest_plugins = ["pytester"]
RULE = InjectionRule(
    credential="demo", hosts=("api.test",), header="authorization", placeholder="moat-placeholder-demo"
)


@pytest.fixture
def origin() -> Iterator[Origin]:
    with tls_origin(echo, "api.test", "other.test") as made:
        yield made


def upstream(origin: Origin) -> UpstreamOptions:
    return UpstreamOptions(
        extra_roots=world().pem,
        connect_to={("api.test", 443): origin.address, ("other.test", 443): origin.address},
    )


def event(number: int) -> ExchangeFinished:
    return ExchangeFinished(0, 0, "GET", f"https://a/{number}", 200, (), (), 0, 0, id=number)


# --- events --------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_reader_that_does_not_keep_up_is_told_what_it_missed_and_where() -> None:
    feed = Feed()
    slow, quick = feed.reader(3), feed.reader(100)
    for number in range(5):
        feed.put(event(number))
    assert await anext(slow) == event(0)
    feed.put(event(5))
    feed.put(event(6))
    feed.close()
    assert [e async for e in slow] == [event(1), event(2), Missed(2), event(5), Missed(1)]
    assert [e async for e in quick] == [event(n) for n in range(7)]
    assert [e async for e in feed.reader(1)] == []
    with pytest.raises(ValueError, match="at least one"):
        feed.reader(0)


@pytest.mark.anyio
async def test_the_gap_stands_where_it_was() -> None:
    feed = Feed()
    reader = feed.reader(2)
    for number in range(4):
        feed.put(event(number))
    found = [await anext(reader), await anext(reader), await anext(reader)]
    feed.put(event(4))
    feed.close()
    assert [*found, *[e async for e in reader]] == [event(0), event(1), Missed(2), event(4)]


# --- Proxy.open ----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_proxy_in_one_line(origin: Origin, tmp_path: Path) -> None:
    record = tmp_path / "network.jsonl"
    asked: list[str] = []

    async def decide(question: Question) -> bool:
        asked.append(question.url)
        return "no" not in question.url

    async with Proxy.open(
        rules=[RULE],
        credentials={"demo": "s3cret-of-the-user"},
        upstream=upstream(origin),
        record=record,
        decider=decide,
    ) as proxy:
        events = proxy.events()
        async with httpx.AsyncClient(proxy=proxy.url, verify=proxy.client_context()) as client:
            answer = await client.get(
                "https://api.test/x", headers={"Authorization": "Bearer moat-placeholder-demo"}
            )
            assert answer.status_code == 200
            assert "s3cret-of-the-user" not in answer.text, "scrubbed"
            assert answer.headers["x-seen-authorization"] == "Bearer " + "*" * 18
            refused = await client.get("https://other.test/no")
            assert refused.status_code == 403
        first, second = await anext(events), await anext(events)
        assert isinstance(first, ExchangeFinished)
        assert isinstance(second, ExchangeFinished)
        assert (first.url, first.grants) == ("https://api.test/x", ("demo",))
        assert second.denial is not None
    assert [e async for e in events] == [], "the events end with the proxy"
    assert asked == ["https://api.test/x", "https://other.test/no"]
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["status"] for line in lines] == [200, 403]
    assert "s3cret" not in record.read_text()
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", proxy.port), 1)


@pytest.mark.anyio
async def test_it_asks_for_its_password_and_listens_on_loopback_only(origin: Origin) -> None:
    """Seen to fail with `token=None` in `open_proxy`."""
    async with Proxy.open(upstream=upstream(origin)) as proxy:
        async with httpx.AsyncClient(
            proxy=f"http://127.0.0.1:{proxy.port}", verify=proxy.client_context()
        ) as stranger:
            with pytest.raises(httpx.ProxyError, match="407"):
                await stranger.get("https://api.test/")
        assert origin.accepted == 0
        (listener,) = [
            line.split()[1]
            for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
            if line.split()[1].endswith(f":{proxy.port:04X}") and line.split()[3] == "0A"
        ]
        assert listener.startswith("0100007F:")
    async with Proxy.open(upstream=upstream(origin), token="mine") as proxy:
        assert proxy.url == f"http://moat:mine@127.0.0.1:{proxy.port}"


@pytest.mark.anyio
async def test_a_password_of_ones_own(origin: Origin) -> None:
    """Seen failing with the password in the URL as it is."""
    async with Proxy.open(token="p@ss/w:rd #?%41é", upstream=upstream(origin)) as proxy:
        async with httpx.AsyncClient(proxy=proxy.url, verify=proxy.client_context()) as client:
            assert (await client.get("https://api.test/")).status_code == 200


@pytest.mark.anyio
async def test_an_empty_password_is_none_at_all() -> None:
    """`os.environ.get("TOKEN", "")`: everybody on the machine was let in, and nobody asked."""
    with pytest.raises(ValueError, match="the token is empty"):
        async with Proxy.open(token=""):
            pytest.fail("it must not listen")


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", [("asyncio", {})])
async def test_leaving_the_block_ends_everything_and_errors_come_out_as_they_are(origin: Origin) -> None:
    async def fail() -> None:
        async with Proxy.open(upstream=upstream(origin), grace=0.0) as proxy:
            with socket.create_connection(("127.0.0.1", proxy.port)):
                await anyio.sleep(0.05)
                raise ZeroDivisionError

    tasks = len(asyncio.all_tasks())
    with pytest.raises(ZeroDivisionError):
        await fail()
    assert len(asyncio.all_tasks()) == tasks
    with anyio.move_on_after(0.5) as scope:
        async with Proxy.open(upstream=upstream(origin), grace=0.0):
            await anyio.sleep(60)
    assert scope.cancelled_caught
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        async with Proxy.open(port=taken.getsockname()[1]):
            pass


# --- the fixture ---------------------------------------------------------------------------------

SUITE = '''
import asyncio, os, subprocess, sys
import aiohttp, httpx, pytest, requests
from moat.proxy import Budget, Policy

SERVERS = {{"api.test": ("127.0.0.1", {port}), "other.test": ("127.0.0.1", {port})}}
PEM = b"""{pem}"""
SECRET = "real-token-0123456789"


@pytest.fixture
def proxy(moat_proxy):
    return moat_proxy(servers=SERVERS, trust=PEM, inject={{"api.test": SECRET}})


def check(proxy, seen):
    assert seen == "Bearer " + "*" * len(SECRET)  # the server echoes what it got, and the proxy scrubs it
    (exchange,) = proxy.wait_for(1)
    assert exchange.url == "https://api.test/x"
    assert exchange.grants == ("api.test",)
    assert SECRET not in repr(exchange)


def test_requests(proxy):
    bearer = {{"Authorization": f"Bearer {{proxy.placeholders['api.test']}}"}}
    check(proxy, requests.get("https://api.test/x", headers=bearer).headers["x-seen-authorization"])


def test_httpx(proxy):
    check(proxy, httpx.get("https://api.test/x").headers["x-seen-authorization"])


def test_aiohttp(proxy):
    async def go():
        async with aiohttp.ClientSession(trust_env=True) as session:
            async with session.get("https://api.test/x", ssl=proxy.client_context()) as answer:
                return answer.headers["x-seen-authorization"]
    check(proxy, asyncio.run(go()))


def test_a_subprocess(proxy):
    code = "import urllib.request as r; print(r.urlopen('https://api.test/x').headers['x-seen-authorization'])"
    check(proxy, subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip())


def test_policy_and_two_proxies(moat_proxy):
    strict = moat_proxy(servers=SERVERS, trust=PEM, policy=Policy(mode="strict"))
    assert requests.get("https://other.test/").status_code == 403
    strict.wait_for(1)
    limited = moat_proxy(servers=SERVERS, trust=PEM, budgets=[Budget(requests=1)])
    assert [requests.get("https://other.test/").status_code for _ in range(2)] == [200, 403]
    assert len(strict.exchanges) == 1
    with pytest.raises(AssertionError, match="3 exchanges were expected"):
        limited.wait_for(3, timeout=0.1)


def test_nothing_is_left():
    assert "HTTPS_PROXY" not in os.environ
'''


def test_the_fixture_in_a_suite_of_its_own(
    pytester: pytest.Pytester, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    pytester.makepyfile(SUITE.format(port=origin.address[1], pem=world().pem.decode()))
    result = pytester.runpytest_subprocess("-q", "-W", "error", timeout=100)
    result.assert_outcomes(passed=6)
