"""An agent that rewrites agent.yaml does not decide what the next run may do."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Moat = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.embedded
WRITE = 'printf "network:\\n  policy: permissive\\n" > agent.yaml'


@pytest.fixture
def place(tmp_path: Path) -> Path:
    workspace = tmp_path / "project"
    workspace.mkdir()
    (workspace / "agent.yaml").write_text("network:\n  policy: strict\n")
    return workspace


def run(
    moat: Moat, place: Path, *command: str, flags: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return moat("run", str(place), "--runtime", "embedded", *flags, "--", *command)


def test_a_changed_file_is_refused_until_it_was_accepted(moat: Moat, place: Path) -> None:
    assert run(moat, place, "sh", "-c", WRITE).returncode == 0
    refused = run(moat, place, "true")
    assert refused.returncode == 2
    assert "agent.yaml was changed while run" in refused.stderr
    assert "--accept-config" in refused.stderr
    assert run(moat, place, "true", flags=("--accept-config",)).returncode == 0
    assert run(moat, place, "true").returncode == 0, "what was accepted once stays accepted"


def test_a_new_file_is_refused(moat: Moat, place: Path) -> None:
    (place / "agent.yaml").unlink()
    assert (
        run(
            moat,
            place,
            "sh",
            "-c",
            f"{WRITE}.new && mv agent.yaml.new agent.yaml && touch -d 2001-01-01 agent.yaml",
        ).returncode
        == 0
    )
    assert run(moat, place, "true").returncode == 2


def test_a_removed_file_is_told(moat: Moat, place: Path) -> None:
    assert run(moat, place, "rm", "agent.yaml").returncode == 0
    refused = run(moat, place, "true")
    assert refused.returncode == 2
    assert "is gone" in refused.stderr


def test_a_directory_below_an_earlier_workspace_counts(moat: Moat, place: Path) -> None:
    assert run(moat, place, "sh", "-c", f"mkdir sub && cd sub && {WRITE}").returncode == 0
    assert run(moat, place / "sub", "true").returncode == 2


def test_what_the_user_writes_between_runs_is_taken(moat: Moat, place: Path) -> None:
    assert run(moat, place, "true").returncode == 0
    time.sleep(0.1)
    (place / "agent.yaml").write_text("network:\n  policy: permissive\n")
    assert run(moat, place, "true").returncode == 0
