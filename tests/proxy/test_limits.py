"""Limits: positive, consistent with each other, each with its reason."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from pathlib import Path

import pytest

from moat.proxy import limits
from moat.proxy.limits import Limits
from tests.proxy import cases
from tests.proxy.cases import Refused

PAGE = Path(__file__).parents[2] / "docs/limits.md"
ROW = re.compile(r"\| `([\w.]+)` \| ([^|]+) \| [^|]+ \| ([^|]+) \|")
TEST = re.compile(r"`(test_\w+)\.py::(\w+)`")
UNITS = {"": 1, "B": 1, "KiB": 1024, "MiB": 1024**2, "s": 1.0, "ms": 0.001}


def test_every_limit_has_its_reason():
    source = inspect.getsource(limits.Limits)
    for field in dataclasses.fields(Limits):
        assert re.search(rf'{field.name}: (int|float) = .*\n    """.{{20,}}', source), field.name
        assert getattr(Limits(), field.name) > 0


def test_limits_fit_each_other():
    default = Limits()
    assert default.target < default.head
    assert default.chunk_extension < default.chunk_extensions
    assert default.upstream_idle_timeout < default.client_idle_timeout
    assert default.response_head_timeout == 300
    assert default.request_head_timeout == 60
    assert default.tls_handshake_timeout == 10
    assert default.dial_timeout == 30


def test_a_run_cannot_change_them():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Limits().head = 1
    assert dataclasses.replace(Limits(), head=1).head == 1


# --- docs/limits.md ------------------------------------------------------------------------------


def rows():
    return ROW.findall(PAGE.read_text())


def test_every_limit_is_in_the_page_with_its_value():
    told = {name: value for name, value, _test in rows()}
    assert {f"Limits.{field.name}" for field in dataclasses.fields(Limits)} <= told.keys()
    for name, value in told.items():
        number, _, unit = value.partition(" ")
        assert float(number) * UNITS[unit] == in_the_code(name), name


def in_the_code(name):
    place, _, attribute = name.partition(".")
    if place == "Limits":
        return getattr(Limits(), attribute)
    return getattr(importlib.import_module(f"moat.proxy.{place}"), attribute)


def test_every_row_is_tied_to_a_test_that_meets_the_bound():
    """The test exists and speaks of the bound; a case of the corpus exists and is refused."""
    known = {case.name: case for case in cases.everything()}
    for name, _value, tied in rows():
        if (case := re.fullmatch(r"case `(.+)`", tied)) is not None:
            assert isinstance(known[case[1]].verdict, Refused), name
            continue
        match = TEST.fullmatch(tied)
        assert match, name
        module = importlib.import_module(f"tests.proxy.{match[1]}")
        assert name.rpartition(".")[2].strip("_").lower() in source_of(module, match[2]).lower(), name


def source_of(module, name):
    """A test, and what stands at the top of its module."""
    source = inspect.getsource(module)
    return re.split(r"\n(?:async )?def ", source, maxsplit=1)[0] + inspect.getsource(getattr(module, name))


def test_every_test_that_the_page_names_exists():
    named = TEST.findall(PAGE.read_text())
    assert len(named) > 25
    for module, name in named:
        assert callable(getattr(importlib.import_module(f"tests.proxy.{module}"), name))
