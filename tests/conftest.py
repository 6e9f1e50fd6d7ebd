"""What every test stands on: a private home, no leftovers, and components that must be there.

A missing component is a failure, never a skip: `bash .ci/test` installs them all.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from moat.paths import Home
from moat.runtime.sweep import sweep

REPOSITORY = Path(__file__).resolve().parents[1]
# The pinned agents; `.ci/test` sets them.
CLAUDE_VARIABLE, CODEX_VARIABLE, GEMINI_VARIABLE = "MOAT_TEST_CLAUDE", "MOAT_TEST_CODEX", "MOAT_TEST_GEMINI"
BIN_VARIABLE = "MOAT_TEST_BIN"  # the `moat` of the installed wheel; `.ci/test` sets it

# What a developer's shell may hold and a test must not see: credentials, proxies, Moat's own switches.
_PRIVATE = (
    "ANTHROPIC_",
    "CLAUDE_",
    "GITHUB_",
    "GH_",
    "OPENAI_",
    "CODEX_",
    "GEMINI_",
    "GOOGLE_",
    "MOAT_",
    "IS_SANDBOX",
    "DBUS_",
)
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def pytest_configure() -> None:
    # A shell that starts the suite in the background leaves SIGINT ignored, and every program that a test
    # starts would inherit that: Ctrl-C would mean nothing.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Other tests keep the machine busy: how long an example takes says nothing about it.
    hypothesis.settings.register_profile(
        "busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("busy")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """No compressed bytes: they hold the second of their making, and all workers must collect the same names."""
    return argname if isinstance(val, bytes) and not val.isascii() else None


def private_environment(home: Path, runtime: Path) -> dict[str, str]:
    """The environment of a test: the caller's without its secrets, everything personal below `home`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("MOAT_TEST_") or not (name.startswith(_PRIVATE) or name.lower() in _PROXIES)
    }
    return kept | {
        "HOME": str(home),
        "TERM": "xterm-256color",
        "MOAT_HOME": str(home / ".moat"),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "XDG_DATA_HOME": str(home / ".local/share"),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "XDG_STATE_HOME": str(home / ".local/state"),
        "XDG_RUNTIME_DIR": str(runtime),
    }


@pytest.fixture(scope="session")
def runtime_directory() -> Iterator[Path]:
    """Sockets live here: their paths must stay short, so it is not below pytest's own directory."""
    path = Path(tempfile.mkdtemp(prefix="mt-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, runtime_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A private HOME with its own `~/.moat`; whatever a test leaves running there is ended."""
    path = tmp_path / "home"
    path.mkdir(mode=0o700)
    environment = private_environment(path, runtime_directory)
    for name in os.environ.keys() - environment.keys() - {"PYTEST_CURRENT_TEST"}:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    yield path
    reap(path / ".moat")


def reap(moat_home: Path) -> None:
    """End every process that was started with this MOAT_HOME, and let Moat clear up after them."""
    if not (moat_home / "runs").is_dir():
        return
    leftovers = _started_with(moat_home)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in leftovers:
            _kill(pid, number)
        deadline = time.monotonic() + 5
        while (leftovers := _started_with(moat_home)) and time.monotonic() < deadline:
            time.sleep(0.05)
        if not leftovers:
            break
    # What the next command would begin in the background, and would then still be at work in here.
    sweep(Home(moat_home))


def _started_with(moat_home: Path) -> list[int]:
    mark = f"MOAT_HOME={moat_home}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environment = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue  # gone meanwhile, or another user's
            if mark in environment:
                found.append(int(entry.name))
    return found


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def moat_program() -> str:
    """The `moat` under test: the installed wheel's in the whole suite, else this environment's."""
    return os.environ.get(BIN_VARIABLE) or str(Path(sys.executable).parent / "moat")


@pytest.fixture(scope="session")
def moat_bin() -> str:
    program = moat_program()
    assert os.access(program, os.X_OK), f"{program} is missing: run `bash .ci/test`"
    return program


@pytest.fixture
def moat(moat_bin: str, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`moat("run", "--", "true")`: run it as a user does, from an empty workspace, no stdin."""
    workspace = tmp_path / "workspace"
    workspace.mkdir(exist_ok=True)

    def call(*argv: str, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"cwd": workspace, "capture_output": True, "text": True} | options
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run([moat_bin, *argv], timeout=timeout, check=False, **options)

    return call


@pytest.fixture(scope="session")
def claude_binary() -> str:
    """The real Claude Code that the suite pins."""
    return _agent("claude", CLAUDE_VARIABLE)


@pytest.fixture(scope="session")
def codex_binary() -> str:
    """The real Codex that the suite pins."""
    return _agent("codex", CODEX_VARIABLE)


@pytest.fixture(scope="session")
def gemini_script() -> str:
    """The real Gemini CLI that the suite pins, for `node`."""
    return _agent("gemini", GEMINI_VARIABLE)


def _agent(name: str, variable: str) -> str:
    program = os.environ.get(variable) or str(REPOSITORY / ".cache/bin" / name)
    assert os.access(program, os.R_OK), f"{name} is missing at {program}: run `bash .ci/test`"
    return program


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Asyncio, unless a part's own conftest or module asks for more."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _component(request: pytest.FixtureRequest) -> None:
    """Tests marked `docker` or `embedded` fail at once, with the reason, where it is missing."""
    for name, missing in (("docker", _no_engine), ("embedded", _no_bubblewrap)):
        if request.node.get_closest_marker(name) and (reason := missing()):
            pytest.fail(f"{reason}: run `bash .ci/test`", pytrace=False)


@functools.cache
def _no_engine() -> str:
    done = subprocess.run(["docker", "version"], capture_output=True, text=True, timeout=30, check=False)
    return "" if done.returncode == 0 else f"no Docker engine ({done.stderr.strip().splitlines()[-1:]})"


@functools.cache
def _no_bubblewrap() -> str:
    return "" if shutil.which("bwrap") else "no bubblewrap"
