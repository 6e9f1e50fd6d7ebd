"""Every case of the corpus, whole, byte by byte and at every split point.

One test per file: a failing one lists all cases of it that fail. A rewrite of the parsers has to leave this
file alone; only `reading` knows how they are called.
"""

from __future__ import annotations

import re

import pytest

from moat.proxy.head import MalformedError
from moat.proxy.http1 import parse_request, parse_response
from tests.proxy import cases
from tests.proxy.cases import Accepted, Case, Refused, Unfinished
from tests.proxy.reading import LIMITS, read

FILES = [pytest.param(path, id=path.stem) for path in cases.files()]


@pytest.mark.parametrize("path", FILES)
def test_whole(path):
    assert [fault for case in cases.load(path) if (fault := differs(case, [case.wire]))] == []


@pytest.mark.parametrize("path", FILES)
def test_at_every_split(path):
    """In two pieces at every point, and byte by byte: what is read must not depend on how it came."""
    wrong = []
    for case in cases.load(path):
        for cut in case.cuts():
            if fault := differs(case, [case.wire[:cut], case.wire[cut:]]):
                wrong.append(f"cut at {cut}: {fault}")
                break
        if len(case.wire) < 2000 and (fault := differs(case, [bytes([byte]) for byte in case.wire])):
            wrong.append(f"byte by byte: {fault}")
    assert wrong == []


def test_chunks_in_three_pieces():
    """At every pair of split points: a size, its line end and the data may each be cut."""
    wrong = []
    for case in cases.load(cases.CORPUS / "chunked.txt"):
        wire, size = case.wire, len(case.wire)
        if size < 60:
            cuts = ((one, two) for one in range(1, size) for two in range(one + 1, size))
            faults = (differs(case, [wire[:one], wire[one:two], wire[two:]]) for one, two in cuts)
            wrong += [fault for fault in faults if fault][:1]
    assert wrong == []


def differs(case: Case, pieces: list[bytes]) -> str:
    verdict, rest = read(case, pieces)
    if verdict != case.verdict:
        return f"{case.name}: {verdict}, not {case.verdict}"
    if isinstance(verdict, Accepted) and rest != case.rest:
        return f"{case.name}: left over {rest!r}, not {case.rest!r}"
    return ""


@pytest.mark.parametrize("path", FILES)
def test_no_part_of_a_head_is_a_head(path):
    """`parse_request` and `parse_response` on every prefix: nothing, or a refusal that stays one."""
    wrong = []
    for case in cases.load(path):
        if case.reads == "chunked":
            continue
        end = case.data.find(b"\r\n\r\n") + 4 if isinstance(case.verdict, Accepted) else len(case.data)
        for size in (cut for cut in case.cuts() if cut < end):
            seen = head(case, case.data[:size])
            expected = case.verdict.code if isinstance(case.verdict, Refused) else None
            if seen not in {None, expected} and not is_head_of_a_bad_body(case, size):
                wrong.append(f"{case.name}: {seen} after {size} bytes")
                break
    assert wrong == []


def head(case: Case, data: bytes) -> object:
    try:
        if case.reads == "request":
            return parse_request(data, LIMITS)
        return parse_response(data, case.method, LIMITS, upgrade=case.asked)
    except MalformedError as error:
        return error.code


def is_head_of_a_bad_body(case: Case, size: int) -> bool:
    """A head that is complete, while the verdict is about the body behind it."""
    return b"\r\n\r\n" in case.data[:size] and not isinstance(head(case, case.data), str)


def test_the_corpus_is_large_and_says_why():
    everything = cases.everything()
    assert len(everything) >= 300
    assert len({case.name for case in everything}) == len(everything)
    seen = {(case.reads, case.method, case.asked, case.wire): case for case in everything}
    assert [case for case in everything if case not in seen.values()] == []
    for case in everything:
        assert re.fullmatch(r"[0-9]{4} §[0-9]+(\.[0-9]+)*", case.rfc), case
    for verdict in (Accepted, Refused, Unfinished):
        assert sum(isinstance(case.verdict, verdict) for case in everything) > 10


@pytest.mark.parametrize(
    "block",
    [
        "case x\nread request\nrfc 9112 §3\nrefuse y 400\n| a\\qb",
        "case x\nread request\nrfc 9112 §3\nrefuse y 400\n| a ",
        "case x\nread request\nrfc 9112 §3\nrefuse y 400\n|a",
        "case x\nread request\nrfc 9112 §3\nrefuse y 400\n& NOTHING",
        "case x\nread request\nrfc 9112 §3\nrefuse y",
        "case x\nread request\nrfc 9112 §3\naccept none maybe",
        "case x\nread request\nrfc 9112 §3\nrefuse y 400\nwhat",
        "case x\nread request\nrefuse y 400",
    ],
)
def test_a_case_that_is_not_understood_is_told(tmp_path, block):
    """A typing error must not become a case that tests nothing."""
    path = tmp_path / "x.txt"
    path.write_text(block + "\n")
    with pytest.raises(ValueError, match=r"x\.txt: case x"):
        cases.load(path)
