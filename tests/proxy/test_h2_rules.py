"""What is judged beyond a head, for clients that speak HTTP/2: tools of MCP servers, budgets, deciders, warnings.

The same objects judge both protocols; these tests hold that the way of an HTTP/2 stream leads through them.
Seen to fail with `_judge_tools`, `_spend` and `_ask` left out of `Admission._ask_all` for `site.protocol == H2`.
"""

from __future__ import annotations

import contextlib
import json
import threading

import anyio
import pytest

from moat.proxy import Policy, Question
from moat.proxy.budget import Budget
from moat.rules import parse_host_rule
from tests.proxy.conftest import PLACEHOLDER, SECRET, HouseMaker, house, tls_origin
from tests.proxy.h2peers import Client, Server
from tests.proxy.peers import Origin, Wire, echo
from tests.proxy.test_h2_upstream import h2_origin
from tests.proxy.test_mcp import LIST, Told, call, endpoint, listing

API = ("api.test", 443)
BEARER = ("authorization", f"Bearer {PLACEHOLDER}")


# --- tools ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("measured", [True, False])
def test_a_denied_call_opens_no_connection(make: HouseMaker, origin: Origin, measured: bool) -> None:
    told = Told()
    body = json.dumps(call("write")).encode()
    length = [("content-length", str(len(body)))] if measured else []
    with make(origins={API: origin}, mcp=told.table) as house, Client.through(house) as client:
        answer = client.get(BEARER, *length, path="/mcp", method="POST", body=body)
        assert (answer.status, answer.headers["x-moat-denied"]) == (200, "mcp-tool")
        assert json.loads(answer.body)["error"]["code"] == -32003
        event = house.event()
        assert event.denial is not None
        assert (event.protocol, event.denial.code) == ("h2", "mcp-tool")
        assert house.credentials.asked == []
    assert origin.accepted == 0
    assert [(made.tool, made.refused) for made in told.calls] == [("write", True)]


def test_a_body_in_pieces_is_judged_whole_and_passes(make: HouseMaker, origin: Origin) -> None:
    told = Told()
    with make(origins={API: origin}, mcp=told.table) as house, Client.through(house) as client:
        stream = client.ask(BEARER, path="/mcp", method="POST", end=False)
        for byte in json.dumps(call("read")).encode():
            client.send(stream, bytes((byte,)))
        client.send(stream, b"", end=True)
        answer = client.until(stream)
        assert json.loads(json.loads(answer.body)["body"]) == call("read")
        assert SECRET.encode() not in answer.body
    assert [made.tool for made in told.calls] == ["read"]


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
@pytest.mark.parametrize("upstream", ["http/1.1", "h2"])
def test_a_list_comes_back_without_what_may_not_be_called(make: HouseMaker, kind: str, upstream: str) -> None:
    text = json.dumps(LIST).encode()
    body = text if kind == "application/json" else b"event: message\ndata: " + text + b"\n\n"

    def script(server: Server) -> None:
        request = server.request()
        length = ("content-length", str(len(body)))
        server.reply(request.stream, 200, body, ("content-type", kind), length)
        server.request()

    asked = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).encode()
    origin = h2_origin(script) if upstream == "h2" else tls_origin(listing(kind))
    with (
        origin as made,
        make(origins={API: made}, mcp=Told().table) as house,
        Client.through(house) as client,
    ):
        answer = client.get(path="/mcp", method="POST", body=asked)
    shown = answer.body.decode().removeprefix("event: message\n").removeprefix("data: ")
    assert [tool["name"] for tool in json.loads(shown)["result"]["tools"]] == ["read", "get_a"]


def test_a_server_without_a_policy_that_wants_a_login_is_told_to_the_user(make: HouseMaker) -> None:
    def script(server: Server) -> None:
        request = server.request()
        server.reply(
            request.stream, 401, b"who?", ("www-authenticate", 'Bearer resource_metadata="https://x/"')
        )
        server.request()

    table = Told(endpoint(None)).table
    with h2_origin(script) as origin, make(origins={API: origin}, mcp=table) as house:
        with Client.through(house) as client:
            answer = client.get(BEARER, path="/mcp", method="POST", body=b"{}")
        assert (answer.status, answer.headers["x-moat-error"]) == (403, "mcp-login")
        assert "www-authenticate" not in answer.headers


# --- budgets -------------------------------------------------------------------------------------


def test_streams_spend_from_the_budget_of_the_run(make: HouseMaker, origin: Origin) -> None:
    with make(origins={API: origin}, budgets=[Budget(requests=3)]) as house:
        with Client.through(house) as client:
            answers = [client.until(stream) for stream in [client.ask() for _ in range(5)]]
        with Client.through(house) as other:
            answers.append(other.get())
        assert sorted(answer.status for answer in answers) == [200, 200, 200, 403, 403, 403]
        assert answers[-1].headers["x-moat-denied"] == "budget"
        events = [house.event() for _ in answers]
        assert sorted(event.denial.code if event.denial else "" for event in events) == ["", "", ""] + 3 * [
            "budget"
        ]


def test_a_rate_says_when(make: HouseMaker, origin: Origin) -> None:
    with (
        make(origins={API: origin}, budgets=[Budget(requests_per_minute=1)]) as house,
        Client.through(house) as client,
    ):
        assert client.get().status == 200
        answer = client.get()
        assert (answer.status, answer.headers["x-moat-denied"]) == (429, "rate")
        assert 50 <= int(answer.headers["retry-after"]) <= 60


def test_an_upload_without_a_length_is_cut_and_answered() -> None:
    seen = bytearray()

    def swallow(wire: Wire) -> None:
        while data := wire.receive():
            seen.extend(data)

    with (
        tls_origin(swallow) as origin,
        house(origins={API: origin}, budgets=[Budget(upload=100_000)]) as made,
        Client.through(made) as client,
    ):
        stream = client.ask(method="POST", end=False)
        for _ in range(12):
            client.send(stream, b"y" * 10_000)
        answer = client.until(stream)
        assert (answer.status, answer.headers["x-moat-denied"]) == (403, "budget")
        event = made.event()
        assert event.denial is not None
        assert event.denial.rule == "network.budget: upload 100000"
    assert seen.count(b"y") <= 100_000


@pytest.mark.parametrize("begun", [False, True])
def test_a_response_beyond_its_bound_is_refused_or_cut_and_never_looks_whole(begun: bool) -> None:
    shown = threading.Event()

    def script(server: Server) -> None:
        stream = server.request().stream
        server.h2.send_headers(stream, [(":status", "200")])
        server.send(stream, b"z" * 50_000)
        if begun:
            shown.wait(10)
        with contextlib.suppress(AssertionError):  # the proxy has heard enough
            server.send(stream, b"z" * 250_000, end=True)
        server.request()

    with (
        h2_origin(script) as origin,
        house(origins={API: origin}, budgets=[Budget(response=100_000)]) as made,
    ):
        with Client.through(made) as client:
            stream = client.ask()
            client.until(stream, lambda answer: bool(answer.body) or (bool(answer.status) and not begun))
            shown.set()
            answer = client.until(stream)
        if begun:
            assert (answer.status, answer.ended, answer.reset is not None) == (200, False, True)
            assert 0 < len(answer.body) <= 100_000
        else:
            assert answer.body.count(b"z" * 1000) <= 100
            assert answer.status == 403 or answer.reset is not None
        event = made.event()
        assert event.denial is not None
        assert event.denial.code == "budget"


# --- deciders and warnings -----------------------------------------------------------------------


def test_each_stream_is_asked_about_and_none_waits_for_another(make: HouseMaker, origin: Origin) -> None:
    asked: list[Question] = []

    async def decide(question: Question) -> bool:
        asked.append(question)
        if "slow" in question.url:
            await anyio.sleep(0.5)
        return "no" not in question.url

    with make(origins={API: origin}, decider=decide) as house, Client.through(house) as client:
        slow, no, yes = (client.ask(BEARER, path=path) for path in ("/slow", "/no", "/yes"))
        assert client.until(yes).status == 200
        assert not client.answers[slow].ended
        assert (client.until(no).status, client.answers[no].headers["x-moat-denied"]) == (403, "decider")
        assert client.until(slow).status == 200
        assert all(("authorization", "[REDACTED]") in question.headers for question in asked)
        assert {question.method for question in asked} == {"GET"}


def test_a_client_that_cancels_takes_its_question_with_it(make: HouseMaker, origin: Origin) -> None:
    ended = []

    async def decide(question: Question) -> bool:
        try:
            await anyio.sleep(30)
        finally:
            ended.append(question.url)
        return True

    with make(origins={API: origin}, decider=decide) as house, Client.through(house) as client:
        stream = client.ask()
        house.portal.call(anyio.sleep, 0.2)
        client.h2.reset_stream(stream)
        client.flush()
        assert house.event().error == "client went away"
        assert ended == ["https://api.test/"]
    assert origin.accepted == 0


def test_what_is_only_warned_of_goes_on_and_is_recorded(make: HouseMaker, origin: Origin) -> None:
    policy = Policy(mode="permissive", hosts=(parse_host_rule("api.test", ["warn GET /odd/**"]),))
    with make(origins={API: origin}, policy=policy) as house, Client.through(house) as client:
        assert [client.get(path=path).status for path in ("/odd/a", "/even")] == [200, 200]
        warned, plain = house.event(), house.event()
        assert warned.warning is not None
        assert (warned.warning.rule, plain.warning) == ("api.test: warn GET /odd/**", None)


def test_the_origin_that_these_tests_share_echoes() -> None:
    """`call`'s answers are read from its JSON."""
    with tls_origin(echo) as origin, house(origins={API: origin}) as made, Client.through(made) as client:
        assert json.loads(client.get(method="POST", body=b"a").body)["body"] == "a"
