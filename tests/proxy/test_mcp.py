"""Tools of MCP servers: what may be called, what a list may show, streams that never end.

How each defence was shown to fail: with `judge` returning `Judgement()` every call below reaches the origin;
with `_object` returning `dict(pairs)`, or `_plain` returning `message.get(key)` at once, the doubled and the
misspelled keys do; with `login_denial` returning None the metadata of the origin comes back; with `readdressed`
returning its argument the local server is asked for as moat-host; with `_is_event_stream` returning False the
silent stream is cut.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from moat.proxy import Limits, Policy, UpstreamOptions
from moat.proxy.events import Denial
from moat.proxy.mcp import McpEndpoint, McpTable, ToolCall, ToolPolicy, judge
from moat.proxy.mcp_filter import McpResponse, ToolFilter
from moat.proxy.scrub import BodyScrubber, UnreadableBodyError
from tests.proxy.conftest import RULE, SECRET, HouseMaker, house, tls_origin
from tests.proxy.peers import PATIENCE, Message, Origin, Wire, echo, reply

POLICY = ToolPolicy(allow=("get_*", "Search", "read"), deny=("get_secret*",))
LOGIN = "the user runs `moat grant oauth demo`"


def endpoint(policy: ToolPolicy | None = POLICY, **changes: Any) -> McpEndpoint:
    values = {"name": "demo", "host": "api.test", "port": 443, "policy": policy, "login": LOGIN}
    return McpEndpoint(**(values | changes))


def call(name: object, number: object = 1, **more: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": {"name": name}} | more


def judged(body: object, headers: tuple[tuple[bytes, bytes], ...] = (), **policy: Any):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return judge(endpoint(ToolPolicy(**policy) if policy else POLICY), headers, data)


def test_a_batch_is_answered_in_its_own_size() -> None:
    """Each of its answers names all that were refused: a megabyte of calls took all the memory there was."""
    answer = judged([call("x" * 255, number) for number in range(100)]).answer
    assert answer is not None
    assert len(json.loads(answer.body)) == 100
    many = json.dumps([call("x" * 255, number) for number in range(1000)]).encode()
    answer = judged(many).answer
    assert answer is not None
    assert answer.denial is not None
    assert answer.denial.code == "mcp-body"
    assert "more than 100 messages" in answer.denial.reason
    assert len(answer.body) < 4096


# --- the judge --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["get_issue", "get_", "Search", "read"])
def test_an_allowed_call_passes(name):
    found = judged(call(name))
    assert found.answer is None
    assert found.calls == (ToolCall("demo", name, "", refused=False),)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("get_secret", "tools.deny: get_secret*"),
        ("GET_SECRET_KEY", "tools.deny: get_secret*"),
        ("get_\u017fecret", "tools.deny: get_secret*"),  # casefold of a long s
        ("search", "tools.allow (no entry matches)"),  # an allow is exact
        ("write", "tools.allow (no entry matches)"),
        (" write ", "tools.allow (no entry matches)"),
    ],
)
def test_a_denied_call_gets_an_error_that_a_model_can_act_on(name, rule):
    answer = judged(call(name, number="seven")).answer
    assert answer is not None
    assert (answer.status, answer.denial.code, answer.denial.rule) == (200, "mcp-tool", rule)
    error = json.loads(answer.body)
    assert (error["jsonrpc"], error["id"], error["error"]["code"]) == ("2.0", "seven", -32003)
    assert repr(name.strip()) in error["error"]["message"]
    assert rule in error["error"]["message"]
    assert "agent.yaml" in error["error"]["message"]


def test_a_deny_alone_lets_the_rest_pass():
    assert judged(call("anything"), deny=("drop*",)).answer is None
    assert judged(call("drop_table"), deny=("drop*",)).answer is not None


def test_a_batch_with_one_denied_call_is_refused_as_a_whole():
    found = judged([call("read", 1), call("write", 2), {"jsonrpc": "2.0", "method": "notifications/x"}])
    assert [c.refused for c in found.calls] == [False, True]
    assert [each["id"] for each in json.loads(found.answer.body)] == [1, 2]
    assert judged([call("read", 1), call("get_a", 2)]).answer is None


@pytest.mark.parametrize("body", [
    b'{"method":"tools/call","params":{"name":"read"},"params":{"name":"write"}}',
    b'{"method":"tools/list","method":"tools/call","params":{"name":"write"}}',
    b'{"method":"tools/call","params":{"name":"read","name":"write"}}',
    b'{"Method":"tools/call","params":{"name":"write"}}',
    b'{"method":"tools/list","METHOD":"tools/call","params":{"name":"write"}}',
    '{"method":"tools/call","param\u017f":{"name":"write"}}'.encode(),
    b'{"method":"tools/call","params":{"NAME":"write"}}',
    b'{"method":"tools/call","params":{"name":"read","Name":"write"}}',
    b'{"method":"tools/call","params":["write"]}',
    b'{"method":"tools/call","params":{"name":["write"]}}',
    b'{"method":"tools/call","params":{"name":""}}',
    b'{"method":"tools/call","params":{"name":"read\\u0000"}}',
    b'{"method":"tools/call","params":{"name":"read\\n"}}',
    json.dumps(call("r" * 257)).encode(),
    b'{"method":"tools/call"}',
    b'"tools/call"', b"[1]", b"", b"{", b"\xff\xfe{}", b"{'method': 'tools/call'}", b'{"a": NaN}',
    b"[" * 100_000,
    json.dumps(call("write")).encode("utf-16"),
    b"\xef\xbb\xbf" + json.dumps(call("write")).encode(),
    b"--boundary\r\n\r\n" + json.dumps(call("write")).encode(),
])  # fmt: skip
def test_what_two_parsers_read_in_two_ways_is_refused(body):
    answer = judged(body).answer
    assert answer is not None
    assert (answer.status, answer.denial.code) == (403, "mcp-body")


@pytest.mark.parametrize(
    "header",
    [
        (b"Content-Encoding", b"gzip"),
        (b"content-encoding", b"br"),
        (b"Content-Type", b"application/json; charset=utf-16"),
        (b"Content-Type", b'application/json; Charset = "utf-7"'),
        (b"Content-Type", b"application/json; charset=utf-8; charset=utf-7"),
    ],
)
def test_a_body_in_disguise_is_refused(header):
    assert judged(call("read"), (header,)).answer.denial.code == "mcp-body"


def test_what_is_no_call_passes_whatever_its_arguments():
    for body in (
        {"jsonrpc": "2.0", "id": 1, "method": "tools/list"},
        {"jsonrpc": "2.0", "id": 1, "method": "resources/read", "params": {"name": "write", "Name": "x"}},
        {"jsonrpc": "2.0", "id": 3, "result": {"ok": True}},
        call("read", params={"name": "read", "arguments": {"A": 1, "a": 2}}),
    ):
        assert judged(body, ((b"Content-Type", b"application/json; charset=utf-8"),)).answer is None


def test_audit_refuses_nothing_and_tells_everything():
    table = {"allow": ("read",), "audit": True}
    found = judged([call("read", 1), call("write", 2)], **table)
    assert found.answer is None
    assert [(c.tool, c.rule, c.refused) for c in found.calls] == [
        ("read", "", False),
        ("write", "tools.allow (no entry matches)", False),
    ]
    found = judged(b"what", **table)
    assert found.answer is None
    assert [(c.tool, c.rule) for c in found.calls] == [("", "it is not JSON")]


# --- lists ------------------------------------------------------------------------------------------------

LIST = {
    "jsonrpc": "2.0",
    "id": 1,
    "result": {"tools": [{"name": n} for n in ("read", "write", "get_a", "get_secret")], "nextCursor": "c"},
}
SHORT = {
    "jsonrpc": "2.0",
    "id": 1,
    "result": {"tools": [{"name": "read"}, {"name": "get_a"}], "nextCursor": "c"},
}


def filtered(
    kind: str, pieces: list[bytes], *, lists: bool = True, limit: int = 10_000, policy=POLICY
) -> bytes:
    headers = ((b"Content-Type", kind.encode()),)
    response = McpResponse(endpoint(policy), lists=lists, limit=limit)
    body = response.filtered(BodyScrubber((b"hush",), headers, Limits()), kind.partition(";")[0].encode())
    return b"".join([b"".join(body.feed(piece)) for piece in pieces]) + body.finish()


def test_a_list_in_json_is_shortened_and_scrubbed():
    data = json.dumps(LIST | {"note": "hush"}).encode()
    assert json.loads(filtered("application/json", [data[:50], data[50:]])) == SHORT | {"note": "****"}
    assert json.loads(filtered("application/json", [json.dumps([LIST]).encode()])) == [SHORT]
    assert filtered("application/json", [data], lists=False) == data.replace(b"hush", b"****")
    with pytest.raises(UnreadableBodyError):
        filtered("application/json", [data], limit=100)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_a_list_in_an_event_is_shortened_wherever_it_is_cut(end, size):
    text = json.dumps(LIST)
    cut = text.index(' "result"')
    stream = f": ping\n\nevent: message\nid: 4\ndata: {text}\n\ndata: other\n\nid: 5\ndata:{text[:cut]}\ndata: {text[cut:]}\n\ntail"
    data = stream.replace("\n", end).encode()
    got = filtered(
        "text/event-stream; charset=utf-8", [data[i : i + size] for i in range(0, len(data), size)]
    )
    events = got.decode().replace(end, "\n").split("\n\n")
    short = json.dumps(SHORT)
    assert events == [
        ": ping",
        f"event: message\nid: 4\ndata: {short}",
        "data: other",
        f"id: 5\ndata: {short}",
        "tail",
    ]


def test_events_without_a_list_leave_as_they_came():
    data = b'data: {"tools" : 1 }\r\n\r\ndata: {"result":{"tools":"x"}}\n\n: k\n\n'
    assert filtered("text/event-stream", [data]) == data


def test_an_event_beyond_the_limit_is_not_held():
    body = McpResponse(endpoint(), lists=False, limit=1000).filtered(
        BodyScrubber((), (), Limits()), b"text/event-stream"
    )
    assert isinstance(body, ToolFilter)
    big = b"data: " + b"x" * 5000
    out = b"".join(body.feed(big))
    assert len(big) - len(out) < 32
    out += b"".join(body.feed(b"\n\ndata: " + json.dumps(LIST).encode() + b"\n\n"))
    assert out.startswith(big)
    assert json.loads(out[len(big) + 8 :].decode().strip()) == SHORT


SPELLINGS = ['"tools"', r'"\u0074ools"', r'"to\u006Fl\u0073"', r'"\u0074\u006f\u006F\u006c\u0073"']


@pytest.mark.parametrize("spelled", SPELLINGS)
def test_a_list_is_found_in_whatever_way_its_name_is_spelled(spelled):
    """Seen to pass unshortened when only `"tools"` itself is looked for."""
    data = f"data: {json.dumps(LIST).replace(SPELLINGS[0], spelled)}\n\n".encode()
    assert json.loads(filtered("text/event-stream", [data]).removeprefix(b"data: ")) == SHORT


@pytest.mark.parametrize("spelled", [SPELLINGS[0], SPELLINGS[-1]])
@pytest.mark.parametrize("size", [1, 7, 700])
@pytest.mark.parametrize("where", ["before", "after"])
def test_a_list_in_an_event_beyond_the_limit_ends_the_response(size, where, spelled):
    """Fails when `_insist_on_no_tools` does nothing."""
    filler = "x" * 3000
    value = LIST | {"note": filler} if where == "before" else {"note": filler} | LIST
    data = f"data: {json.dumps(value).replace(SPELLINGS[0], spelled)}\n\n".encode()
    with pytest.raises(UnreadableBodyError, match="an event with a list of tools has more than 1000 bytes"):
        filtered("text/event-stream", [data[i : i + size] for i in range(0, len(data), size)], limit=1000)
    answer = {"result": {"content": [{"text": json.dumps(LIST) + filler}]}}  # a tool may speak of tools
    told = b"data: " + json.dumps(answer).encode() + b"\n\n"
    assert filtered("text/event-stream", [told], limit=1000) == told


# --- in the proxy -----------------------------------------------------------------------------------------


def post(
    wire: Wire, body: object, *headers: str, path: str = "/mcp", method: str = "POST", host: str = "api.test"
):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(data)}", *headers, "", ""]
    wire.send("\r\n".join(lines).encode() + data)
    return wire.message()


class Told:
    def __init__(self, *endpoints: McpEndpoint) -> None:
        self.calls: list[ToolCall] = []
        self.table = McpTable(endpoints or (endpoint(),), self.calls.append)


@pytest.fixture
def told() -> Told:
    return Told()


def test_a_call_that_cannot_be_recorded_does_not_go_out(make: HouseMaker, origin: Origin) -> None:
    """Seen failing with the answer of `on_call` ignored in exchange.py."""
    full = Denial(code="journal", reason="the journal cannot be written", rule="", hint="")
    table = McpTable((endpoint(),), lambda _: full)
    with make(origins={("api.test", 443): origin}, mcp=table) as house:
        with house.tunnel() as wire:
            answer = post(wire, call("read"))
        assert answer.get("x-moat-denied") == "journal"
        assert house.credentials.asked == []
        assert house.event().denial == full


@pytest.mark.parametrize("path", ["/mcp", "/mcp/", "/x/../mcp", "/%6dcp", "/other?x=1"])
@pytest.mark.parametrize("method", ["POST", "PUT", "GET"])
def test_a_denied_call_opens_no_connection_on_any_path(
    make: HouseMaker, origin: Origin, told: Told, path, method
):
    with make(origins={("api.test", 443): origin}, mcp=told.table) as house:
        with house.tunnel() as wire:
            answer = post(wire, call("write"), path=path, method=method)
        assert (answer.status, answer.get("x-moat-denied")) == (200, "mcp-tool")
        assert answer.json()["error"]["code"] == -32003
        event = house.event()
        assert (event.status, event.denial.code, event.denial.rule) == (
            200,
            "mcp-tool",
            "tools.allow (no entry matches)",
        )
        assert house.credentials.asked == []
    assert origin.accepted == 0
    assert told.calls == [ToolCall("demo", "write", "tools.allow (no entry matches)", refused=True)]


def test_an_allowed_call_reaches_the_server_with_the_credential(make: HouseMaker, origin: Origin, told: Told):
    with make(origins={("api.test", 443): origin}, mcp=told.table) as house, house.tunnel() as wire:
        for _ in range(2):  # and the connection is kept
            seen = post(wire, call("read"), f"Authorization: Bearer {RULE.placeholder}").json()
            assert json.loads(seen["body"]) == call("read")
            assert ["Authorization", "Bearer " + "*" * len(SECRET)] in [
                [n.title(), v] for n, v in seen["headers"]
            ]
    assert [c.tool for c in told.calls] == ["read", "read"]


def test_a_body_in_pieces_is_judged_whole(make: HouseMaker, origin: Origin, told: Told):
    """Chunked, byte by byte, and announced with Expect: 100-continue."""
    with make(origins={("api.test", 443): origin}, mcp=told.table) as house:
        for name in ("write", "read"):
            with house.tunnel() as wire:
                wire.send(
                    b"POST /mcp HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
                )
                assert wire.until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
                for byte in json.dumps(call(name)).encode():
                    wire.send(b"1\r\n%c\r\n" % byte)
                wire.send(b"0\r\n\r\n")
                answer = wire.message()
                while answer.status == 100:
                    answer = wire.message()
            if name == "write":
                assert answer.get("x-moat-denied") == "mcp-tool"
                assert origin.accepted == 0
            else:
                assert json.loads(answer.json()["body"]) == call("read")


def test_a_body_that_is_too_large_to_be_judged_is_refused(make: HouseMaker, origin: Origin, told: Told):
    limits = Limits(mcp_message=2000)
    big = call("read", padding="x" * 3000)
    with (
        make(origins={("api.test", 443): origin}, mcp=told.table, limits=limits) as house,
        house.tunnel() as wire,
    ):
        assert post(wire, big).get("x-moat-denied") == "mcp-body"
    assert origin.accepted == 0
    audit = Told(endpoint(ToolPolicy(audit=True)))
    with (
        make(origins={("api.test", 443): origin}, mcp=audit.table, limits=limits) as house,
        house.tunnel() as wire,
    ):
        assert json.loads(post(wire, big).json()["body"]) == big


def test_an_upgrade_would_leave_what_can_be_judged(make: HouseMaker, origin: Origin, told: Told):
    with make(origins={("api.test", 443): origin}, mcp=told.table) as house, house.tunnel() as wire:
        wire.send(b"GET /mcp HTTP/1.1\r\nHost: api.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert wire.message().get("x-moat-denied") == "mcp-body"
    assert origin.accepted == 0


def test_the_policy_holds_on_every_port_of_the_host(make: HouseMaker, told: Told):
    with Origin(echo) as plain:
        with (
            make(origins={("api.test", 80): plain}, mcp=told.table) as house,
            house.connected("api.test:80") as wire,
        ):
            assert post(wire, call("write")).get("x-moat-denied") == "mcp-tool"
        assert plain.accepted == 0


def test_another_host_is_not_looked_into(make: HouseMaker, origin: Origin, told: Told):
    with (
        make(origins={("other.test", 443): origin}, mcp=told.table) as house,
        house.tunnel("other.test") as wire,
    ):
        seen = post(wire, b"{" + json.dumps(call("write")).encode(), host="other.test").json()
        assert seen["body"].startswith("{{")
    assert told.calls == []


def listing(kind: str) -> Callable[[Wire], None]:
    text = json.dumps(LIST).encode()

    def script(wire: Wire) -> None:
        wire.message()
        body = text if kind == "application/json" else b"event: message\ndata: " + text + b"\n\n"
        wire.send(reply(200, body, f"Content-Type: {kind}"))

    return script


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
def test_a_list_comes_back_without_what_may_not_be_called(make: HouseMaker, told: Told, kind):
    ask = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    for table, names in ((told.table, ["read", "get_a"]), (Told(endpoint(None)).table, None)):
        with (
            tls_origin(listing(kind)) as origin,
            make(origins={("api.test", 443): origin}, mcp=table) as house,
        ):
            with house.tunnel() as wire:
                body = post(wire, ask).body.decode().removeprefix("event: message\n").removeprefix("data: ")
        tools = [tool["name"] for tool in json.loads(body)["result"]["tools"]]
        assert tools == (names or ["read", "write", "get_a", "get_secret"])


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
def test_lists_that_are_held_are_bounded_together(kind: str) -> None:
    """A server may leave 4 MiB of a list without its end, in as many answers as a sandbox asks for.

    Seen failing: all of them held.
    """
    ask = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    begun = threading.Event()

    def script(wire: Wire) -> None:
        wire.message()
        wire.send(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: 5000\r\n\r\n".encode())
        wire.send(b"data: {" + b" " * 1000)
        begun.wait(20)
        with contextlib.suppress(OSError):
            wire.send(b" " * 10)
            wire.until(b"never")

    limits = Limits(held=1500, mcp_message=2000)
    with (
        tls_origin(script) as origin,
        house(origins={("api.test", 443): origin}, mcp=Told().table, limits=limits) as made,
    ):
        held = made.proxy._setup.held
        with made.tunnel() as first, made.tunnel() as second:
            for wire in (first, second):
                body = json.dumps(ask).encode()
                wire.send(
                    b"POST /mcp HTTP/1.1\r\nHost: api.test\r\nContent-Length: %d\r\n\r\n" % len(body) + body
                )
            refused = made.event()
            assert "lists of tools of too many answers" in refused.error
            assert held.free < 1500
            begun.set()
        while held.free < 1500:
            time.sleep(0.01)


# --- logging in -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [
    "/.well-known/oauth-protected-resource", "/.well-known/oauth-protected-resource/mcp",
    "/.well-known/oauth-authorization-server", "/.well-known/openid-configuration",
    "/%2ewell-known/oauth-authorization-server", "/x/../.well-known/openid-configuration?x",
    "/register", "/token", "/token/", "/authorize?client_id=x",
    "/.Well-Known/OAuth-Protected-Resource", "/Register", "/%54oken",
])  # fmt: skip
def test_a_client_cannot_fetch_a_token_of_its_own(make: HouseMaker, origin: Origin, path):
    table = Told(endpoint(None)).table
    with make(origins={("api.test", 443): origin}, mcp=table) as house, house.tunnel() as wire:
        answer = post(wire, b"", path=path)
        assert (answer.status, answer.get("x-moat-denied"), answer.json()["hint"]) == (
            403,
            "mcp-login",
            LOGIN,
        )
    assert origin.accepted == 0


def test_a_server_that_wants_a_login_is_told_to_the_user_and_not_to_the_client(make: HouseMaker):
    def script(wire: Wire) -> None:
        wire.message()
        wire.send(reply(401, b"", 'WWW-Authenticate: Bearer resource_metadata="https://evil.test/"'))

    table, rejected = Told(endpoint(None)).table, []
    table.on_rejected = rejected.append
    with tls_origin(script) as origin, make(origins={("api.test", 443): origin}, mcp=table) as house:
        with house.tunnel() as wire:
            answer = post(wire, call("read"))
    assert rejected == ["demo"]
    assert (answer.status, answer.get("x-moat-error"), answer.get("www-authenticate")) == (
        403,
        "mcp-login",
        None,
    )
    assert answer.json()["hint"] == LOGIN


@pytest.mark.parametrize(
    "first",
    [
        "/.well-known/oauth-protected-resource/mcp",
        "/.well-known/oauth%2dprotected-resource",
        "/.WELL-known/OAuth-protected-resource",
    ],
)
def test_a_server_that_is_not_configured_cannot_be_logged_in_to_either(
    make: HouseMaker, origin: Origin, first
):
    """From `.mcp.json`, say. After the page where a login begins, the ones that old clients guess are refused as well.

    Seen to fail with `asked` returning None: the origin echoes all three.
    """
    with make(origins={("api.test", 443): origin}) as house:
        for path in (first, "/register", "/token?x=1"):
            with house.tunnel() as wire:
                wire.send(f"GET {path} HTTP/1.1\r\nHost: api.test\r\n\r\n".encode())
                answer = wire.message()
            assert (answer.status, answer.get("x-moat-denied")) == (403, "mcp-login")
            assert "moat grant oauth NAME --url https://api.test/" in answer.json()["hint"]
        with house.tunnel() as wire:
            assert post(wire, call("read")).status == 200
    assert origin.accepted == 1


def test_a_challenge_of_a_server_that_is_not_configured_stays_outside(make: HouseMaker):
    """RFC 9728: the 401 says where to log in. Seen to fail with `challenged` returning None: the client gets it."""

    def script(wire: Wire) -> None:
        wire.message()
        wire.send(reply(401, b"", 'WWW-Authenticate: Bearer Resource_Metadata="https://api.test/x"'))

    with tls_origin(script) as origin, make(origins={("api.test", 443): origin}) as house:
        with house.tunnel() as wire:
            answer = post(wire, call("read"))
        assert (answer.status, answer.get("x-moat-error"), answer.get("www-authenticate")) == (
            403, "mcp-login", None,
        )  # fmt: skip
        assert "agent.yaml" in answer.json()["hint"]
        with house.tunnel() as wire:
            wire.send(b"GET /register HTTP/1.1\r\nHost: api.test\r\n\r\n")
            assert wire.message().status == 403
    assert origin.accepted == 1


def test_other_demands_for_a_login_pass(make: HouseMaker):
    """Git, package registries and browsers are told who asks, and so on, as ever."""

    def script(wire: Wire) -> None:
        wire.message()
        wire.send(reply(401, b"", 'WWW-Authenticate: Basic realm="x"'))

    with tls_origin(script) as origin, make(origins={("api.test", 443): origin}) as house:
        with house.tunnel() as wire:
            answer = post(wire, call("read"))
    assert (answer.status, answer.get("www-authenticate")) == (401, 'Basic realm="x"')


# --- streams ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [None, POLICY])
def test_a_silent_stream_of_events_is_neither_held_back_nor_cut(make: HouseMaker, policy):
    """Longer than the idle time of bodies, and of the wait for a head. The second event waits for the first."""
    arrived = threading.Event()

    def script(wire: Wire) -> None:
        wire.message()
        time.sleep(0.7)
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        wire.send(b"9\r\ndata: 1\n\n\r\n")
        assert arrived.wait(PATIENCE)
        time.sleep(1.0)
        wire.send(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")

    limits = Limits(body_idle_timeout=0.4, response_head_timeout=0.3)
    table = Told(endpoint(policy)).table
    with (
        tls_origin(script) as origin,
        make(origins={("api.test", 443): origin}, mcp=table, limits=limits) as house,
    ):
        with house.tunnel() as wire:
            data = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "subscriptions/listen"}).encode()
            wire.send(
                b"POST /mcp HTTP/1.1\r\nHost: api.test\r\nContent-Length: %d\r\n\r\n" % len(data) + data
            )
            assert Message.read(wire, head_only=True).status == 200
            assert wire.chunk() == b"data: 1\n\n"
            arrived.set()
            assert wire.chunk() == b"data: 2\n\n"
            assert wire.chunk() == b""


def test_a_stream_ends_when_its_client_leaves(make: HouseMaker):
    gone = []

    def script(wire: Wire) -> None:
        wire.message()
        wire.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n:\n\n\r\n"
        )
        gone.append(wire.receive())

    with tls_origin(script) as origin, make(origins={("api.test", 443): origin}, mcp=Told().table) as house:
        with house.tunnel() as wire:
            wire.send(b"GET /mcp HTTP/1.1\r\nHost: api.test\r\n\r\n")
            assert Message.read(wire, head_only=True).status == 200
            assert wire.chunk() == b":\n\n"
        assert house.event().error == "client went away"


# --- on this machine --------------------------------------------------------------------------------------


def local(origin: Origin, policy: ToolPolicy | None = None) -> dict[str, Any]:
    """Options of a proxy that knows an MCP server at the port of `origin`."""
    place = endpoint(policy, host="moat-host", port=origin.port, expects=b"localhost:%d" % origin.port)
    return {
        "mcp": Told(place).table,
        "policy": Policy(mode="strict", host_ports=frozenset({origin.port})),
        "options": UpstreamOptions(host_ports=frozenset({origin.port})),
    }


def test_a_local_server_is_asked_by_the_name_that_it_knows(make: HouseMaker):
    with Origin(echo) as origin, make(**local(origin)) as house:
        name = f"moat-host:{origin.port}"
        with house.connected(name) as wire:
            seen = post(wire, call("read"), f"Origin: http://{name}", host=name).json()
        headers = {key.lower(): value for key, value in seen["headers"]}
        assert headers["host"] == f"localhost:{origin.port}"
        assert headers["origin"] == f"http://localhost:{origin.port}"
        event = house.event()
        assert (event.method, event.url, event.status) == ("POST", f"http://{name}/mcp", 200)
        with house.connect() as wire:  # as a client does that honours HTTP_PROXY
            wire.send(f"GET http://{name}/mcp HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
            assert ["Host", f"localhost:{origin.port}"] in wire.message().json()["headers"]


def test_the_tools_of_a_local_server_are_judged_and_other_bytes_do_not_pass(make: HouseMaker):
    with Origin(echo) as origin, make(**local(origin, POLICY)) as house:
        name = f"moat-host:{origin.port}"
        with house.connected(name) as wire:
            assert post(wire, call("write"), host=name).get("x-moat-denied") == "mcp-tool"
        with house.connected(name) as wire:
            wire.send(b"\x00\x01anything but HTTP\r\n\r\n")
            assert wire.message().status == 400
        assert origin.accepted == 0


def test_no_other_port_of_the_machine_is_opened(make: HouseMaker):
    with Origin(echo) as other, Origin(echo) as origin, make(**local(origin)) as house:
        with house.connected(f"moat-host:{other.port}") as wire:
            assert post(wire, b"", host=f"moat-host:{other.port}").get("x-moat-denied") == "policy"
        assert other.accepted == 0
