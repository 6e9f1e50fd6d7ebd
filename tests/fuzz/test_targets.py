"""The fuzzers' targets on all that is known: seeds, what fuzzing has kept, and mutants of the cases."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from tests.fuzz import seeds
from tests.fuzz.targets import TARGETS
from tests.proxy import cases

ODD = [
    b"",
    b"\r",
    b"\n",
    b"\r\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"\x01",
    b"\xff",
    b"0",
    b"#",
    b"Host: b\r\n",
]
SEEDS = {target: seeds.seeds(target) for target in TARGETS}


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_known_passes(target):
    """A fault that fuzzing finds is added to `corpus/`, and fails here until it is mended."""
    for data in [b"", *SEEDS[target], *seeds.load(target)]:
        TARGETS[target](data)


def mutants(target):
    """A seed with a piece of it removed or replaced by an odd one."""
    piece = st.sampled_from(ODD)

    def mutate(seed, start, size, other):
        start %= len(seed) + 1
        return seed[:start] + other + seed[start + size :]

    return st.builds(mutate, st.sampled_from(SEEDS[target]), st.integers(0, 400), st.integers(0, 3), piece)


@settings(max_examples=400)
@given(mutants("heads"))
def test_mutants_of_heads(data):
    TARGETS["heads"](data)


@settings(max_examples=200)
@given(mutants("chunks"))
def test_mutants_of_chunks(data):
    TARGETS["chunks"](data)


@settings(max_examples=100)
@given(mutants("conversation"))
def test_mutants_of_conversations(data):
    TARGETS["conversation"](data)


@pytest.mark.parametrize(
    "data", [b"\\", b" a ", b"\x00\xff\r\n\t", b"x" * 300 + b"\n" + b"y" * 300, b"# not a comment"]
)
def test_the_notation_of_a_corpus_is_exact(data, tmp_path, monkeypatch):
    monkeypatch.setattr(seeds, "CORPUS", tmp_path)
    seeds.save("x", [data, b"other"])
    assert seeds.load("x") == [data, b"other"]


@pytest.mark.parametrize(
    ("target", "data", "fault"),
    [
        ("heads", b"\x01GET / HTTP/1.1\r\nHost: a\r\n\r\n", "moat.proxy.http1.parse_request"),
        ("chunks", b"\x085\r\nhello\r\n0\r\n\r\n", "moat.proxy.chunked.ChunkedReader._take_line"),
    ],
)
def test_a_target_finds_a_fault(target, data, fault, monkeypatch):
    """The fuzzers would be worth nothing if a reader that fails went unnoticed."""

    def broken(*_args, **_options):
        raise IndexError

    for name in (fault, fault.replace("moat.proxy.http1", "tests.fuzz.targets")):
        monkeypatch.setattr(name, broken)
    with pytest.raises(IndexError):
        TARGETS[target](data)


@pytest.mark.parametrize(
    ("target", "name", "fault"),
    [
        ("h2_client", "moat.proxy.h2_fields._target", lambda *_: 1 // 0),
        ("h2_client", "moat.proxy.h2_server.Server._taken", lambda _self, _request: 1 // 0),
        ("h2_client", "moat.proxy.inject.CompiledRule.bound_to", lambda *_: True),
        ("h2_client", "moat.proxy.needles.Needles.spans", lambda _self, _text: []),
        ("h2_server", "moat.proxy.download.mask_fields", lambda fields, _secrets: fields),
        ("h2_server", "moat.proxy.needles.Needles.spans", lambda _self, _text: []),
        ("h2_server", "moat.proxy.pipe.PipeEnd.lose", lambda self, _reason: self.give(b"0\r\n\r\n")),
    ],
)
def test_a_target_finds_what_http2_must_not_do(target, name, fault, monkeypatch):
    """Errors of ours, a credential towards the wrong side, and a cut response that looks whole."""
    monkeypatch.setattr(name, fault)

    def all_of_them():
        for data in SEEDS[target]:
            TARGETS[target](data)

    with pytest.raises((AssertionError, ZeroDivisionError, ExceptionGroup)):
        all_of_them()


def test_seeds_come_from_the_corpus():
    assert len(SEEDS["heads"]) > 400
    assert any(case.wire in seed for case in cases.everything()[:5] for seed in SEEDS["chunks"])
