"""The Docker engine ends under a run and comes back: a real one, of the test's own."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from moat.paths import Home
from moat.runtime import engine as engine_calls, known
from moat.runtime.records import State
from tests.conftest import REPOSITORY
from tests.runtime.private_engine import PrivateEngine, private_engine
from tests.runtime.survival_kit import AGENT, goes_on, is_still, leftovers, only, until

Moat = Callable[..., subprocess.CompletedProcess[str]]
LIVE = ("--live-restore",)
WENT_AWAY = "the Docker engine went away under the run"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "workspace"
    path.mkdir(exist_ok=True)
    (path / "agent.py").write_text(AGENT)
    return path


@pytest.fixture(scope="module")
def started() -> Iterator[PrivateEngine]:
    with private_engine() as found:
        found.give_image()
        yield found


@pytest.fixture
def engine(started: PrivateEngine, monkeypatch: pytest.MonkeyPatch) -> PrivateEngine:
    """DOCKER_HOST names it."""
    monkeypatch.setenv("DOCKER_HOST", started.address)
    return started


@pytest.mark.docker
def test_the_engine_ends_and_comes_back(moat: Moat, workspace: Path, engine: PrivateEngine) -> None:
    """Told to end, it ends its containers, save with `live-restore`; killed, it ends none.

    While it is away the run is on its way out, and `moat list` says so. Seen failing: it said `running` for
    the fifteen seconds in which the run waits for its engine.
    """
    place = Home.from_environment()
    options: tuple[str, ...] = ()
    for number, then in (
        (signal.SIGTERM, LIVE),
        (signal.SIGTERM, LIVE),
        (signal.SIGKILL, ()),
    ):
        case = (signal.Signals(number).name, options, then)
        argv = ("run", "-d", "--runtime", "docker", "--no-snapshots", "--", "python3", "agent.py")
        assert moat(*argv, cwd=workspace).returncode == 0, case
        assert goes_on(workspace), case
        engine.end(number)
        until(lambda: only(place).state is not State.RUNNING)
        (row,) = json.loads(moat("list", "--json", timeout=5).stdout)
        obeyed = number == signal.SIGTERM and not options
        assert row["state"] in ({"stopping", "failed"} if obeyed else {"stopping"}), case
        engine.start(*then)
        options = then
        until(lambda: only(place).state.ended and not only(place).directory, 30)
        ended = only(place)
        assert ended.state is State.FAILED, case
        assert ended.error == ("exit status 143" if obeyed else WENT_AWAY), case
        assert leftovers(ended) == [], case
        assert is_still(workspace), case
        assert "403" in moat("logs", ended.id).stdout
        assert moat("audit", ended.id, "--verify").returncode == 0
        assert moat("destroy", ended.id).returncode == 0
        (workspace / "beat").unlink()


# Everybody's patience with an engine, a fifth of what it is: their relation is what counts.
IMPATIENT = """\
from moat.cli import stop
from moat.runtime import engine, engine_socket, releasing
engine._QUICK /= 5
stop._MARGIN /= 5
releasing._PATIENCE /= 5
engine_socket.ask.__kwdefaults__["timeout"] /= 5
"""


@pytest.mark.docker
def test_the_engine_stands_still(
    moat: Moat, workspace: Path, engine: PrivateEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever needs it is told within half a minute; whoever does not notices nothing.

    Seen failing without the time that calls have (`engine_http.within`): `moat exec` then waits for ever; with a
    `moat stop` that kills a supervisor which has hung up to clear up, the run is `lost`.
    """
    (tmp_path / "sitecustomize.py").write_text(IMPATIENT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    place = Home.from_environment()
    run = ("run", "--runtime", "docker", "--no-snapshots")
    assert moat(*run, "-d", "--name", "x", "--", "python3", "agent.py", cwd=workspace).returncode == 0
    assert goes_on(workspace)
    x = only(place)
    with engine.standing_still():
        assert goes_on(workspace)
        for looking in ("list", "status", "logs", "trace"):
            assert moat(looking, timeout=10).returncode == 0
        with ThreadPoolExecutor() as threads:
            refused = threads.submit(moat, *run, "--", "true", timeout=10)
            executed = moat("exec", "x", "--", "true", timeout=10)
        told = f"no Docker engine answers at {engine.socket} (timed out)"
        assert refused.result().stderr.splitlines()[0] == f"moat: error: {told}"
        assert "the Docker engine has not answered for 2 s" in executed.stderr
        stopped = moat("stop", "x", "-t", "1", timeout=20)
        assert stopped.stderr.splitlines() == [
            f"moat: warning: something of x may be left: {told}",
            f"moat: hint: `moat destroy {x.id}` tries again",
        ]
        ended = known.find(place, "x")
        assert (ended.state, ended.error) == (State.STOPPED, "the Docker engine has not answered for 2 s")
    until(lambda: not known.find(place, "x").directory and not leftovers(x), 30)
    assert is_still(workspace)


def test_how_long_an_engine_may_take_is_what_the_page_says() -> None:
    row = next(
        line
        for line in (REPOSITORY / "docs/survival.md").read_text().splitlines()
        if line.startswith("| the Docker engine stands still |")
    )
    assert f"`the Docker engine has not answered for {engine_calls._QUICK:g} s`" in row
