"""`moat doctor` tries things for real; each thing that is broken is found, with the way to fix it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

Moat = Callable[..., subprocess.CompletedProcess[str]]
STATUSES = {"ok", "warn", "fail"}


def rows(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    return {row["name"]: row for row in json.loads(done.stdout)}


def without(directory: Path, *programs: str) -> dict[str, str]:
    """The environment, with a PATH that lacks some programs."""
    directory.mkdir()
    for place in reversed(os.environ["PATH"].split(":")):
        for program in Path(place).iterdir() if Path(place).is_dir() else ():
            link = directory / program.name
            if program.name not in programs:
                link.unlink(missing_ok=True)
                link.symlink_to(program)
    return os.environ | {"PATH": str(directory)}


@pytest.mark.docker
@pytest.mark.embedded
def test_a_machine_where_everything_works(moat: Moat, claude_binary: str, tmp_path: Path) -> None:
    place = tmp_path / "bin"
    place.mkdir()
    (place / "claude").symlink_to(claude_binary)
    environment = os.environ | {"MOAT_KEYRING_BACKEND": "file", "PATH": f"{place}:{os.environ['PATH']}"}
    done = moat("doctor", "--json", timeout=110, env=environment)
    found = rows(done)
    assert list(found) == [
        "moat", "state", "config", "embedded", "docker", "sandbox (embedded)", "sandbox (docker)",
        "keyring", "grants", "claude",
    ]  # fmt: skip
    wrong = [row for name, row in found.items() if row["status"] != "ok" and name != "grants"]
    assert not wrong
    assert found["grants"]["fix"] == "moat grant anthropic"
    assert "2.1.330" in found["claude"]["detail"]
    assert done.returncode == 0


@pytest.mark.embedded
def test_text_has_one_line_a_row_and_a_fix_below_it(moat: Moat) -> None:
    done = moat("doctor", timeout=110, env=os.environ | {"DOCKER_HOST": "unix:///nonexistent/docker.sock"})
    lines = done.stdout.splitlines()
    assert all(line.split()[0] in {*STATUSES, "fix:"} for line in lines)
    docker = next(i for i, line in enumerate(lines) if line.startswith("warn  docker"))
    assert "/nonexistent/docker.sock" in lines[docker]
    assert "\x1b" not in done.stdout
    assert done.returncode == 0, "one runtime is enough"


def test_without_any_runtime_it_fails(moat: Moat, tmp_path: Path) -> None:
    environment = without(tmp_path / "bin", "bwrap") | {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}
    done = moat("doctor", "--json", timeout=110, env=environment)
    found = rows(done)
    assert done.returncode == 1
    assert [found[name]["status"] for name in ("embedded", "docker")] == ["fail", "fail"]
    assert "bubblewrap" in found["embedded"]["fix"]
    assert not any(name.startswith("sandbox") for name in found)


def test_a_missing_keyring_is_told_with_the_way_around(moat: Moat) -> None:
    done = moat("doctor", "--json", timeout=110)
    keyring = rows(done)["keyring"]
    assert keyring["status"] == "warn"
    assert "MOAT_KEYRING_BACKEND=file" in keyring["fix"]


def test_a_wrong_user_configuration_fails_with_its_place(moat: Moat, home: Path) -> None:
    state = home / ".moat"
    state.mkdir(mode=0o700)
    (state / "config.yaml").write_text("upstream:\n  ca_bundel: /x\n")
    done = moat("doctor", "--json", timeout=110)
    config = rows(done)["config"]
    assert (config["status"], done.returncode) == ("fail", 1)
    assert "config.yaml:2:3" in config["detail"]
    assert "ca_bundle" in config["detail"]


def test_a_state_directory_that_cannot_be_written_fails(moat: Moat, home: Path) -> None:
    (home / ".moat").write_text("a file where a directory should be")
    done = moat("doctor", "--json", timeout=110)
    assert rows(done)["state"]["status"] == "fail"
    assert done.returncode == 1


@pytest.mark.embedded
def test_a_bubblewrap_that_starts_nothing_fails(moat: Moat, tmp_path: Path) -> None:
    """It is there and can be executed; only starting a namespace with it shows that it is no use."""
    program = tmp_path / "bin"
    environment = without(program, "bwrap")
    wrapper = program / "bwrap"
    wrapper.write_text("#!/bin/sh\nexit 1\n")
    wrapper.chmod(0o755)
    done = moat("doctor", "--json", timeout=110, env=environment | {"DOCKER_HOST": "unix:///nonexistent"})
    found = rows(done)
    assert done.returncode == 1
    assert found["embedded"]["status"] == "fail"


def test_it_leaves_nothing_behind(moat: Moat, home: Path) -> None:
    moat("doctor", timeout=110)
    left = [path for path in (home / ".moat").rglob("*") if path.is_file()]
    assert not [path for path in left if "stage-" in str(path) or "doctor-" in path.name]
    assert not (REPOSITORY / "doctor").exists()
