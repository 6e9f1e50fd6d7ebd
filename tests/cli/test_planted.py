"""Nothing that an agent left in a workspace runs on the host, wherever the user's variables lead to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Moat = Callable[..., subprocess.CompletedProcess[str]]
# What Moat starts by its name, or by the name of one that does.
PROGRAMS = (
    "aws", "bwrap", "certutil", "claude", "diff", "docker-credential-planted", "gh", "git", "install", "mkdir",
    "newuidmap", "node", "rm", "setsid", "sh", "ssh", "sudo", "uv", "update-ca-certificates", "xdg-open",
)  # fmt: skip


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "workspace"
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture
def ran(workspace: Path) -> Path:
    """Where the planted programs write their names."""
    ran = workspace.parent / "ran"
    for place in (workspace, workspace / "tools"):
        place.mkdir(exist_ok=True)
        for name in PROGRAMS:
            (place / name).write_text(f'#!/bin/sh\necho "$0" >> {ran}\n')
            (place / name).chmod(0o755)
    return ran


ROLE = ("--role", "arn:aws:iam::123456789012:role/agents", "--aws-profile", "planted")
COMMANDS = {
    "git": ("wt", "list"),
    "gh": ("grant", "github", "--method", "gh", "--no-validate"),
    "ssh": ("grant", "ssh", "--host", "example.com"),
    "aws": ("grant", "aws", *ROLE, "--no-prompt"),
    "certutil": ("trust", "install"),
}


@pytest.fixture
def configured(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    (home / ".pki/nssdb").mkdir(parents=True)
    (home / ".pki/nssdb/cert9.db").touch()


@pytest.mark.usefixtures("configured")
@pytest.mark.parametrize("entry", [".", "", "tools"])
@pytest.mark.parametrize("program", COMMANDS)
def test_a_relative_entry_of_path(moat: Moat, ran: Path, program: str, entry: str) -> None:
    """`PATH=node_modules/.bin:…` leads into whatever workspace the user stands in."""
    moat(*COMMANDS[program], env=os.environ | {"PATH": f"{entry}:{os.environ['PATH']}"})
    assert not ran.exists(), ran.read_text()


@pytest.mark.embedded
@pytest.mark.usefixtures("configured")
@pytest.mark.parametrize("program", COMMANDS)
def test_an_environment_in_the_workspace_of_a_run(
    moat: Moat, workspace: Path, ran: Path, program: str
) -> None:
    """Active in the user's shell, wherever that stands: its `bin` is first on PATH, and the agent's."""
    assert moat("run", "--runtime", "embedded", "--", "true").returncode == 0
    path = f"{workspace}/tools:{os.environ['PATH']}"
    moat(*COMMANDS[program], cwd=workspace.parent, env=os.environ | {"PATH": path})
    assert not ran.exists(), ran.read_text()


@pytest.mark.usefixtures("configured")
@pytest.mark.parametrize("program", sorted(COMMANDS.keys() - {"git"}))
def test_where_the_users_own_programs_stand(moat: Moat, tmp_path: Path, program: str) -> None:
    """Not in a workspace: a version manager's shim would take a program from where `.tool-versions` says."""
    own = tmp_path / "own"
    own.mkdir()
    (own / program).write_text(f"#!/bin/sh\npwd >> {own}/told\nexit 1\n")
    (own / program).chmod(0o755)
    done = moat(*COMMANDS[program], env=os.environ | {"PATH": f"{own}:{os.environ['PATH']}"})
    assert (own / "told").exists(), done.stderr
    assert set((own / "told").read_text().split()) == {"/"}


@pytest.mark.embedded
@pytest.mark.parametrize("entry", [".", "{workspace}/tools"])
def test_a_program_beside_a_run(moat: Moat, workspace: Path, ran: Path, entry: str) -> None:
    """An environment of Python or Node in the workspace is on PATH while it is active, and is the agent's."""
    subprocess.run(["git", "init", "-q"], cwd=workspace, check=True)
    path = f"{entry.format(workspace=workspace)}:{os.environ['PATH']}"
    for _ in range(2):  # before the second, what the first left is looked at
        done = moat("run", "--runtime", "embedded", "--", "true", env=os.environ | {"PATH": path})
        assert done.returncode == 0, done.stderr
    assert not ran.exists(), ran.read_text()


@pytest.mark.embedded
def test_modules_on_pythonpath(moat: Moat, workspace: Path) -> None:
    """What is imported late, here and in the supervisor, is not what the agent has written meanwhile."""
    ran = workspace.parent / "ran"
    names = [name for name in sys.stdlib_module_names if not name.startswith("_")]
    names += ["aiohttp", "h2", "cryptography", "ahocorasick_rs", "anyio", "httpx"]
    (workspace / "src").mkdir()
    plant = f"open({str(ran)!r}, 'a').write(__name__ + ' in ' + open('/proc/self/cmdline').read() + chr(10))"
    (workspace / "plant").write_text(plant)
    script = f"for name in {' '.join(names)}; do cp plant src/$name.py; done; sleep 2"
    done = moat(
        "run", "--runtime", "embedded", "--", "sh", "-c", script,
        env=os.environ | {"PYTHONPATH": str(workspace / "src")},
    )  # fmt: skip
    assert not ran.exists(), ran.read_text()
    assert done.returncode == 0, done.stderr
    assert "warning: PYTHONPATH leads into the workspace" in done.stderr
