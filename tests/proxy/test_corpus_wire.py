"""The corpus over the whole proxy: what is accepted arrives as it was meant, what is refused does not.

Plain HTTP in a tunnel, to be quick. Requests that are refused are sent over TLS in `test_refusals`.
"""

from __future__ import annotations

from tests.proxy import cases
from tests.proxy.cases import Accepted, Case
from tests.proxy.conftest import HouseMaker
from tests.proxy.peers import Message, Origin, Wire, echo

PLACE = ("a.example", 80)


def test_requests_that_are_accepted_arrive(make: HouseMaker) -> None:
    """The server reads the method, the target and the body that the case says, and nothing behind it."""
    meant = [case for case in cases.everything() if _is_for_the_place(case)]
    assert len(meant) > 60
    wrong = []
    with Origin(echo) as origin, make(origins={PLACE: origin}, rules=()) as house:
        for case in meant:
            with house.connected("a.example:80") as wire:
                wire.send(case.data)
                method, target = case.data.lstrip(b"\r\n").split(b" ")[:2]
                answer = wire.message(head_only=method == b"HEAD")
                while answer.status < 200:
                    answer = wire.message()
                if answer.status != 200:
                    wrong.append(f"{case.name}: {answer} {answer.body!r}")
                    continue
                seen = answer.json()
                assert isinstance(case.verdict, Accepted)
                if seen["start"] != f"{method.decode()} {target.decode()} HTTP/1.1":
                    wrong.append(f"{case.name}: {seen['start']}")
                if seen["body"].encode("latin-1") != case.verdict.payload:
                    wrong.append(f"{case.name}: {seen['body']!r}")
        assert origin.failures == []
    assert wrong == []


def _is_for_the_place(case: Case) -> bool:
    """An accepted request whose target and Host are those of the tunnel; upgrades and CONNECT have tests."""
    if case.reads != "request" or not isinstance(case.verdict, Accepted) or case.verdict.upgrade:
        return False
    head = case.data.partition(b"\r\n\r\n")[0].lstrip(b"\r\n")
    return head.split(b" ")[1].startswith(b"/") and b"\r\nhost: a.example\r\n" in head.lower() + b"\r\n"


def test_responses_arrive_or_become_a_502(make: HouseMaker) -> None:
    told = [case for case in cases.everything() if case.reads == "response" and _is_final(case)]
    assert len(told) > 80
    now: list[Case] = []

    def script(wire: Wire) -> None:
        wire.message(head_only=True)
        wire.send(now[-1].wire)

    wrong = []
    with Origin(script) as origin, make(origins={PLACE: origin}, rules=()) as house:
        for case in told:
            now.append(case)
            with house.connected("a.example:80") as wire:
                asked = f"Connection: Upgrade\r\nUpgrade: {case.asked.decode()}\r\n" if case.asked else ""
                wire.send(f"{case.method.decode()} / HTTP/1.1\r\nHost: a.example\r\n{asked}\r\n".encode())
                fault = _differs(case, wire.message(head_only=case.method == b"HEAD"))
                wrong += [f"{case.name}: {fault}"] if fault else []
        assert origin.failures == []
    assert wrong == []


def _is_final(case: Case) -> bool:
    """Not a 1xx, which another head would have to follow, and not refused in the middle of its body."""
    if isinstance(case.verdict, Accepted):
        return not case.data.startswith(b"HTTP/1.1 1")
    return case.refused_in_head


def _differs(case: Case, answer: Message) -> str:
    if not isinstance(case.verdict, Accepted):
        right = (answer.status, answer.get("x-moat-error")) == (502, "malformed")
        return "" if right else f"{answer}"
    status = int(case.data.split(b" ")[1][:3])
    right = (answer.status, answer.body) == (status, case.verdict.payload)
    return "" if right else f"{answer} {answer.body!r}"
