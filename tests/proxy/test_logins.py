"""A program that renews a login of the run is answered by the proxy, and nothing leaves for it.

Seen to fail: with `_answer_login` returning None at once every request here reaches the origin, or policy; with
`site` ignoring its scheme or port another server is answered for; with `rule.shared` always true a fresh login passes.
"""

from __future__ import annotations

import json
from dataclasses import replace
from urllib.parse import urlencode

import pytest

from moat.errors import GrantError
from moat.grants import LoginRule
from moat.proxy import Policy
from moat.proxy.budget import Budget
from moat.proxy.events import Denial
from moat.proxy.logins import LONGEST, LoginTable
from tests.proxy.conftest import HouseMaker, house, tls_origin
from tests.proxy.peers import Message, echo

ACCESS, REFRESH = "sk-placeholder-access", "sk-placeholder-refresh"
RULE = LoginRule(
    credential="demo",
    hosts=("api.test",),
    path="/oauth/token",
    access=ACCESS,
    refresh=REFRESH,
    scope="a b",
    again="moat grant demo",
)
MINE = {"grant_type": "refresh_token", "refresh_token": REFRESH, "client_id": "public"}
FRESH = {"grant_type": "authorization_code", "code": "one"}


class Host:
    """Who renews, and who hears of it."""

    def __init__(self, *rules: LoginRule, failure: Exception | None = None) -> None:
        self.renewed: list[str] = []
        self.heard: list[tuple[str, str]] = []
        self._failure = failure
        self.table = LoginTable(
            rules or (RULE,), self._renew, lambda rule, outcome: self.heard.append((rule.credential, outcome))
        )

    async def _renew(self, credential: str) -> None:
        self.renewed.append(credential)
        if self._failure:
            raise self._failure


def post(
    body: bytes | dict[str, str], *headers: str, path: str = "/oauth/token", method: str = "POST"
) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: api.test", *headers, f"Content-Length: {len(data)}", "", ""]
    return "\r\n".join(lines).encode() + data


def ask(made: object, request: bytes, **tunnel: object) -> Message:
    with made.tunnel(**tunnel) as wire:
        wire.send(request)
        return wire.message()


@pytest.mark.parametrize("body", [MINE, urlencode(MINE).encode()], ids=["json", "form"])
def test_the_placeholders_come_back_and_nothing_is_opened(
    make: HouseMaker, body: bytes | dict[str, str]
) -> None:
    """In a policy that does not know the host: there is no origin either."""
    host = Host()
    with make(rules=(), logins=host.table, policy=Policy(mode="strict")) as made:
        answer = ask(made, post(body))
        event = made.event()
    assert answer.status == 200
    value = json.loads(answer.body)
    assert value.pop("expires_in") > 300 * 24 * 3600
    assert value == {
        "token_type": "Bearer",
        "access_token": ACCESS,
        "refresh_token": REFRESH,
        "scope": "a b",
    }
    assert (host.renewed, host.heard) == (["demo"], [("demo", "renewed")])
    assert (event.status, event.denial, event.grants) == (200, None, ())


def test_a_login_that_is_lost_is_told_in_the_words_of_oauth(make: HouseMaker) -> None:
    host = Host(failure=GrantError("demo has ended", hint="run `moat grant demo`"))
    with make(rules=(), logins=host.table) as made:
        answer = ask(made, post(MINE))
    assert answer.status == 400
    assert json.loads(answer.body) == {
        "error": "invalid_grant",
        "error_description": "moat: demo has ended; run `moat grant demo`",
    }
    assert host.heard == [("demo", "lost")]


@pytest.mark.parametrize(
    "body",
    [
        FRESH,
        {**MINE, "refresh_token": "sk-somebody-elses"},
        b"",
        b"[" * 100_000,
        b"x" * (LONGEST + 1),
        b'{"refresh_token": ["' + REFRESH.encode() + b'"]}',
    ],
    ids=["fresh", "foreign", "empty", "deep", "long", "list"],
)
def test_a_real_token_is_not_fetched(body: bytes | dict[str, str]) -> None:
    host = Host()
    with tls_origin(echo) as origin, house(origins={("api.test", 443): origin}, logins=host.table) as made:
        answer = ask(made, post(body))
        assert origin.accepted == 0
    assert (answer.status, answer.get("x-moat-denied")) == (403, "login")
    assert "moat grant demo" in json.loads(answer.body)["hint"]
    assert host.heard == [("demo", "refused")]


@pytest.mark.parametrize(
    "spelled",
    [
        "https://api.test/oauth/token",
        "/oauth/token/",
        "/oauth/%74oken",
        "//oauth/token?x=1",
        "/x/../oauth/token",
        "/oauth/./token;y=1",
        "/oauth%2ftoken",
        "/OAuth/Token",
        # What has no reading that rules can be asked about may be read as one by who drops parameters first.
        "/oauth/token;%ff",
        "/oauth/token;x=%3f",
    ],
)
def test_no_spelling_of_its_path_hides_a_login(spelled: str) -> None:
    """Seen failing (the request reaches the origin) with the path looked up as it was sent."""
    host = Host()
    with tls_origin(echo) as origin, house(origins={("api.test", 443): origin}, logins=host.table) as made:
        answer = ask(made, post(FRESH, path=spelled))
        assert (answer.get("x-moat-denied"), origin.accepted) == ("login", 0)
        assert json.loads(ask(made, post(MINE, path=spelled)).body)["access_token"] == ACCESS


def test_where_others_log_in_too_theirs_pass_whole() -> None:
    host = Host(replace(RULE, shared=True))
    body = urlencode({**FRESH, "padding": "x" * LONGEST}).encode()
    with tls_origin(echo) as origin, house(origins={("api.test", 443): origin}, logins=host.table) as made:
        for sent in (urlencode(FRESH).encode(), body):
            passed = ask(made, post(sent))
            assert (passed.status, len(json.loads(passed.body)["body"])) == (200, len(sent))
        assert json.loads(ask(made, post(MINE)).body)["access_token"] == ACCESS
    assert host.heard == [("demo", "renewed")]


def test_a_login_that_passes_spends_its_body_like_any_other() -> None:
    """It was read before there was a budget to spend from: without `_meter` it would cost nothing."""
    host = Host(replace(RULE, shared=True))
    budgets = [Budget(upload=5_000)]
    others = {**MINE, "refresh_token": "of somebody else", "padding": "x" * 3_000}
    with (
        tls_origin(echo) as origin,
        house(origins={("api.test", 443): origin}, logins=host.table, rules=(), budgets=budgets) as made,
    ):
        assert [ask(made, post(others)).status for _ in range(2)] == [200, 403]
        assert origin.accepted == 1


def test_what_is_no_renewal_goes_on_as_usual() -> None:
    host = Host()
    with tls_origin(echo, "api.test", "other.test") as origin:
        origins = {("api.test", 443): origin, ("api.test", 8443): origin, ("other.test", 443): origin}
        with house(origins=origins, logins=host.table, rules=()) as made:
            for request, place in [
                (post(MINE, path="/oauth/hello"), {}),
                (post(b"", method="GET"), {}),
                (post(MINE).replace(b"api.test", b"api.test:8443"), {"port": 8443}),
                (post(MINE).replace(b"api.test", b"other.test"), {"host": "other.test"}),
            ]:
                assert ask(made, request, **place).status == 200
            # One authority: a Host field that differs is refused, whatever it asks for.
            answer = ask(made, post(MINE).replace(b"api.test", b"other.test"))
            assert answer.get("x-moat-denied") == "authority"
    assert (host.renewed, host.heard) == ([], [])


def test_nothing_happens_unrecorded() -> None:
    host = Host()
    full = Denial(code="journal", reason="it cannot be written", rule="nothing happens unrecorded")
    with house(logins=host.table, rules=(), ready=lambda: full) as made:
        assert ask(made, post(MINE)).status == 503
    assert host.renewed == []
