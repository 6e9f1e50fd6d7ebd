"""Our lazy patterns beside `re.compile`, and every one that Moat has."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import moat
from moat.regex import regex


def test_it_does_what_a_compiled_one_does() -> None:
    ours, theirs = regex(r"(A)b+", re.IGNORECASE), re.compile(r"(A)b+", re.IGNORECASE)
    for text in ("abb", "xAb", "", "aaB"):
        for method in ("match", "fullmatch", "search"):
            found, expected = getattr(ours, method)(text), getattr(theirs, method)(text)
            assert (found and found.span()) == (expected and expected.span())
        assert ours.sub("-", text) == theirs.sub("-", text)
    assert (ours.pattern, ours.flags) == (theirs.pattern, theirs.flags)


def test_it_is_compiled_at_its_first_use_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    def compile_(expression: str, flags: int = 0) -> re.Pattern[str]:
        compiled.append(expression)
        return original(expression, flags)

    original = re.compile
    monkeypatch.setattr(re, "compile", compile_)
    made = regex("a+")
    assert compiled == []
    assert made.fullmatch("aa")
    assert made.fullmatch("aaa")
    assert compiled == ["a+"]


_ALL = """
import importlib, sys
from moat.regex import regex
for name in sys.argv[1:]:
    for key, value in vars(importlib.import_module(name)).items():
        for made in value.values() if isinstance(value, dict) else (value,):
            if isinstance(made, regex):
                made.pattern
                print(name, key)
"""


def test_every_one_that_moat_has_can_be_compiled() -> None:
    package = Path(moat.__file__).parent
    uses = [path for path in package.rglob("*.py") if "from moat.regex import" in path.read_text()]
    names = [".".join(path.relative_to(package.parent).with_suffix("").parts) for path in uses]
    done = subprocess.run([sys.executable, "-c", _ALL, *names], capture_output=True, text=True, check=True)
    assert {line.split()[0] for line in done.stdout.splitlines()} == set(names)
