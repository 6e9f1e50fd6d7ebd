"""A decider of one's own: what it is told, what its answers do, and that everything else refuses.

Seen to fail: without the deadline (`move_on_after`) or the look at `cancel_called`, without the bound in `Desk.ask`,
with `answer is not False` in place of `answer is True`, without `client.deadline`, without `when_gone`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import anyio
import pytest

from moat.grants import Surface
from moat.proxy import Denial, Limits, Policy, Question
from moat.rules import parse_host_rule
from tests.proxy.conftest import PLACEHOLDER, RULE, SECRET, House, HouseMaker, house, tls_origin
from tests.proxy.peers import Origin, Wire, echo
from tests.proxy.test_exchange import API, OTHER, get, post

BEARER = f"Authorization: Bearer {PLACEHOLDER}"
Decide = Callable[[Question], Awaitable[object]]


def answer(wire: Wire, request: bytes = b"") -> tuple[int, str]:
    """Status, and the reason when moat refused."""
    wire.send(request or get())
    message = wire.message()
    return message.status, message.json()["error"] if message.get("x-moat-denied") else ""


def asked(decide: Decide, **options: object) -> contextlib.AbstractContextManager[House]:
    return house(decider=decide, **options)


def test_it_sees_the_request_without_secrets_and_decides(make: HouseMaker, origin: Origin) -> None:
    seen: list[Question] = []

    async def decide(question: Question) -> bool | Denial:
        seen.append(question)
        if "verb" in question.url:
            return Denial("verb", "no verbs today", "the house's own rules", "use nouns")
        return question.method == "GET"

    with make(origins={API: origin}, decider=decide) as house:
        with house.tunnel() as wire:
            wire.send(get("/a?b=c", BEARER))
            message = wire.message()
            assert message.status == 200
            assert message.json()["headers"].count(["Authorization", f"Bearer {SECRET}"]) == 0, "scrubbed"
        with house.tunnel() as wire:
            status, error = answer(wire, post(3) + b"abc")
            assert (status, "it was decided that it may not be made" in error) == (403, True)
        with house.tunnel() as wire:
            wire.send(get("/verb"))
            message = wire.message()
            assert (message.status, message.get("x-moat-denied")) == (403, "verb")
            assert message.json()["hint"] == "use nouns"
        events = [house.event() for _ in range(3)]
        assert [e.denial.code if e.denial else "" for e in events] == ["", "decider", "verb"]
        assert house.credentials.asked == ["demo"], "none is fetched for what is refused"
    first = seen[0]
    assert (first.scheme, first.host, first.port, first.method) == ("https", "api.test", 443, "GET")
    assert first.url == "https://api.test/a?b=c"
    assert first.grants == ("demo",)
    assert first.exchange == events[0].id
    assert not first.undecided
    assert ("Authorization", "[REDACTED]") in first.headers
    assert origin.accepted == 1


def test_what_policy_refuses_is_never_asked() -> None:
    async def decide(question: Question) -> bool:
        raise AssertionError(question)

    policy = Policy("strict", (parse_host_rule("api.test", ["deny * /admin/**"]),))
    with asked(decide, policy=policy) as made:
        for host, path in (("api.test", "/admin/x"), ("other.test", "/")):
            with made.tunnel(host) as wire:
                assert answer(wire, get(path, host=host))[0] == 403


def test_what_no_rule_decides_is_the_deciders_alone(make: HouseMaker, origin: Origin) -> None:
    undecided: list[tuple[str, bool]] = []

    async def decide(question: Question) -> bool:
        undecided.append((question.url, question.undecided))
        return True

    rules = (parse_host_rule("api.test", ["allow GET /known/**", "deny * /admin/**"]),)
    policy = Policy("ask", rules)
    with make(origins={API: origin, OTHER: origin}, policy=policy, decider=decide) as house:
        for host, path, status in (
            ("api.test", "/known/x", 200),
            ("api.test", "/else", 200),
            ("api.test", "/admin/x", 403),
            ("other.test", "/", 200),
        ):
            with house.tunnel(host) as wire:
                assert answer(wire, get(path, host=host))[0] == status
    assert undecided == [
        ("https://api.test/known/x", False),
        ("https://api.test/else", True),
        ("https://other.test/", True),
    ]
    with make(policy=policy) as house, house.tunnel("other.test") as wire:
        status, error = answer(wire, get(host="other.test"))
        assert status == 403, "with nobody to ask it is refused"
        assert "not among the hosts" in error


def test_what_a_rule_allows_need_not_be_asked_about(origin: Origin) -> None:
    urls: list[str] = []

    async def decide(question: Question) -> bool:
        urls.append(question.url)
        return True

    policy = Policy("ask", (parse_host_rule("api.test", ["allow GET /known/**"]),))
    with asked(decide, origins={API: origin}, policy=policy, ask_every=False) as made, made.tunnel() as wire:
        assert answer(wire, get("/known/x"))[0] == 200
        assert answer(wire, get("/else"))[0] == 200
    assert urls == ["https://api.test/else"]


@pytest.mark.parametrize("surfaces", [("header",), ("path",), ("query", "body"), ("websocket",)])
def test_it_is_told_of_every_credential_that_may_go_out(
    surfaces: tuple[Surface, ...], origin: Origin
) -> None:
    """Wherever in the request it goes: an answer about a host must not let a credential out with it.

    Seen to fail with `SiteRules.credentials` telling of headers alone: after a yes the token of a bot left in a path.
    """
    seen: list[Question] = []

    async def decide(question: Question) -> bool:
        seen.append(question)
        return not question.grants

    rule = replace(RULE, surfaces=surfaces)
    with (
        asked(decide, origins={API: origin}, rules=[rule], policy=Policy("ask")) as made,
        made.tunnel() as wire,
    ):
        assert answer(wire, get("/a"))[0] == 403
        assert made.credentials.asked == []
    assert seen[0].grants == ("demo",)


async def _raises(_: Question) -> bool:
    raise RuntimeError("with a secret in it")


async def _forgets(_: Question) -> None:
    return None


async def _nearly(_: Question) -> int:
    return 1


async def _sleeps(_: Question) -> bool:
    await anyio.sleep(30)
    return True


async def _stubborn(_: Question) -> bool:
    with contextlib.suppress(BaseException):  # a decider that ignores its deadline
        await anyio.sleep(30)
    return True


@pytest.mark.parametrize("decide", [_raises, _forgets, _nearly, _sleeps, _stubborn])
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_whatever_is_not_true_in_time_is_a_refusal(loop: str, decide: Decide, origin: Origin) -> None:
    limits = replace(Limits(), question_timeout=0.3)
    with house(loop, origins={API: origin}, decider=decide, limits=limits) as made:
        started = time.monotonic()
        with made.tunnel() as wire:
            status, error = answer(wire, get("/", BEARER))
        assert status == 403
        assert "decide" in error
        assert "secret" not in error
        assert time.monotonic() - started < 5
        assert made.event().denial is not None
        assert made.credentials.asked == []
    assert origin.accepted == 0


def test_held_requests_do_not_exhaust_the_proxy(origin: Origin) -> None:
    """The rest of the connections go on, and one question too many is told to come back."""
    go = anyio.Event()

    async def decide(question: Question) -> bool:
        if "held" in question.url:
            await go.wait()
        return True

    limits = replace(Limits(), questions=3)
    with (
        asked(decide, origins={API: origin}, limits=limits) as made,
        contextlib.ExitStack() as held,
    ):
        wires = [held.enter_context(made.tunnel()) for _ in range(3)]
        for wire in wires:
            wire.send(get("/held"))
        desk = made.proxy._setup.desk
        assert desk is not None
        while desk.waiting < 3:
            time.sleep(0.02)
        with made.tunnel() as wire:
            wire.send(get("/held"))
            message = wire.message()
            assert (message.status, message.get("retry-after")) == (429, "5")
        made.portal.call(go.set)
        assert [wire.message().status for wire in wires] == [200, 200, 200]
        assert desk.waiting == 0
        with made.tunnel() as wire:
            assert answer(wire)[0] == 200


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_client_that_leaves_takes_its_question_with_it(loop: str) -> None:
    cancelled = []

    async def decide(_: Question) -> bool:
        try:
            await anyio.sleep(30)
        except anyio.get_cancelled_exc_class():
            cancelled.append(True)
            raise
        return True

    with tls_origin(echo) as origin, house(loop, origins={API: origin}, decider=decide) as made:
        with made.tunnel() as wire:
            wire.send(get())
            time.sleep(0.3)
        event = made.event()
        assert (event.status, event.error) == (0, "client went away")
        assert cancelled == [True]
        assert made.proxy._setup.desk is not None
        assert made.proxy._setup.desk.waiting == 0
        assert origin.accepted == 0


def test_a_proxy_that_ends_asks_no_longer(origin: Origin) -> None:
    async def decide(_: Question) -> bool:
        await anyio.sleep(60)
        return True

    started = time.monotonic()
    with asked(decide, origins={API: origin}) as made:
        wire = made.tunnel()
        wire.send(get())
        time.sleep(0.3)
    assert time.monotonic() - started < 10
    assert made.event().error == "the proxy shut down"
    wire.close()


def test_a_question_may_take_longer_than_a_head(origin: Origin) -> None:
    async def decide(_: Question) -> bool:
        await anyio.sleep(1.2)
        return True

    limits = replace(Limits(), request_head_timeout=0.5)
    with asked(decide, origins={API: origin}, limits=limits) as made, made.tunnel() as wire:
        assert answer(wire)[0] == 200
