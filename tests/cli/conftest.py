"""What several tests of the command line begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.wizard import Start, terminals


@pytest.fixture
def start(moat_bin: str) -> Iterator[Start]:
    """`moat …` at a terminal, with a person in front of it."""
    with terminals(moat_bin) as spawn:
        yield spawn


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOAT_RUNTIME", "embedded")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "workspace"
    path.mkdir(exist_ok=True)
    return path
