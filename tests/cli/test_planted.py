"""Nothing that an agent left in a workspace runs on the host, wherever the user's variables lead to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
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


@pytest.fixture
def environment(workspace: Path) -> Path:
    """The Python of an environment in the workspace that Moat is installed in."""
    place = workspace / ".venv"
    venv.create(place, symlinks=True)
    site = next(place.glob("lib/python*/site-packages"))
    own = sysconfig.get_path("purelib")
    (site / "moat.pth").write_text(f"import site; site.addsitedir({own!r})\n")
    return place / "bin/python"


@pytest.mark.embedded
def test_a_moat_that_is_installed_in_the_workspace(moat: Moat, workspace: Path, environment: Path) -> None:
    """Nothing is left to defend: it is told, to who starts a run there, makes a grant or asks what is wrong."""
    told = f"moat: warning: Moat runs from {workspace}/.venv, which an agent can change"

    def start(*words: str, cwd: Path = workspace) -> subprocess.CompletedProcess[str]:
        words = (str(environment), "-P", "-m", "moat", *words)
        return subprocess.run(words, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    assert told in start("run", "--runtime", "embedded", "--", "true").stderr
    assert told in start("grant", "list", cwd=workspace.parent).stderr
    row = json.loads(start("doctor", "--json", cwd=workspace.parent).stdout)[0]
    assert (row["name"], row["status"]) == ("moat", "warn")
    done = moat("run", "--runtime", "embedded", "--", "true")
    assert (done.stderr, done.returncode) == ("", 0), "another Moat"
    assert moat("grant", "list").stderr == ""


@pytest.mark.embedded
def test_python_m_moat_in_a_workspace(moat: Moat, workspace: Path) -> None:
    """Seen to fail: neither told, nor kept from taking modules from there later."""
    moat("run", "--runtime", "embedded", "--", "true")
    ran = workspace.parent / "ran"
    for name in ("asyncio", "pathlib", "json", "socket", "anyio"):
        (workspace / f"{name}.py").write_text(f"open({str(ran)!r}, 'a').write({name!r} + chr(10))")
    for option in ((), ("-P",)):
        words = (sys.executable, *option, "-m", "moat", "list")
        done = subprocess.run(words, cwd=workspace, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ("`python -m moat` takes modules from this workspace" in done.stderr) == (not option)
    words = (sys.executable, "-m", "moat", "list")
    elsewhere = subprocess.run(words, cwd=workspace.parent, capture_output=True, text=True)
    assert (elsewhere.stderr, elsewhere.returncode) == ("", 0)
    assert not ran.exists(), ran.read_text()
