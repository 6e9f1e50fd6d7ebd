"""Snapshots of runs that go on, in both runtimes: what triggers them, and a restore under a working agent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moat.journal import read_lines
from moat.paths import Home
from moat.runtime import known
from moat.runtime.snapshots import hold
from moat.runtime.snapshots.pending import read_pending
from moat.runtime.snapshots.store import Snapshot, Store, open_store
from tests.runtime.snapshots.kit import check_store, entries, look, write

pytestmark = [pytest.mark.docker, pytest.mark.embedded, pytest.mark.timeout(300)]
BOTH = pytest.mark.parametrize("runtime", ["embedded", "docker"])
CONFIG = """\
dependencies: [python, git]
snapshots:
  triggers: {idle_threshold_seconds: 2}
  exclude: {additional: [left-out/]}
"""
MAKEFILE = "all:\n\tsleep 2\n\techo built > product\n"
SETUP = "import time\ntime.sleep(2)\nopen('product', 'w').write('built\\n')\n"
# What an agent does: commits, builds, rests, and goes on. The marker would be made by git on the host.
AGENT = """
git init -q . && git config user.email a@example.test && git config user.name A
git config core.fsmonitor 'touch MARKER; false'; printf '#!/bin/sh\\ntouch MARKER\\n' > .git/hooks/post-checkout
chmod +x .git/hooks/post-checkout
until [ -e go-commit ]; do sleep 0.1; done; git -c core.fsmonitor= add committed; git -c core.fsmonitor= commit -qm one
until [ -e go-build ]; do sleep 0.1; done; if command -v make >/dev/null; then make -s; else python3 setup.py build; fi
mkfifo .gitignore
(trap '' TSTP TERM HUP; while :; do echo child; sleep 0.05; done) &
while :; do echo tick; sleep 0.05; done
"""


def moat(workspace: Path, *words: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "moat", *words],
        cwd=workspace,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def of_kind(store: Store, kind: str) -> list[Snapshot]:
    return [snapshot for snapshot in store.all() if snapshot.kind == kind]


@pytest.fixture
def workspace(tmp_path: Path, home: Path) -> Path:
    place = tmp_path / "ws"
    write(
        place,
        {"agent.yaml": CONFIG, "Makefile": MAKEFILE, "setup.py": SETUP, "committed": "c", "left-out/x": "x"},
    )
    return place


@BOTH
def test_an_agent_at_work(workspace: Path, tmp_path: Path, runtime: str) -> None:
    """One run: each trigger, a pause that nothing in there escapes, a restore, one whose program is killed."""
    home = Home.from_environment()
    store = open_store(home, workspace)
    marker = tmp_path / "pwned"
    script = AGENT.replace("MARKER", str(marker))
    moat(workspace, "run", "--runtime", runtime, "-d", "-n", "agent", "--", "sh", "-c", script)
    record = known.find(home, "agent")
    (pre,) = of_kind(store, "pre-run")
    assert "left-out/x" not in entries(store, pre)
    assert ".git" not in entries(store, pre), "taken before the sandbox existed"

    write(workspace, {"go-commit": ""})
    until(lambda: of_kind(store, "git"))
    (commit,) = of_kind(store, "git")
    head = (workspace / ".git/refs/heads/master").read_text().strip()
    assert commit.label == f"HEAD {head[:12]}"
    assert ".git/refs/heads/master" in entries(store, commit)
    write(workspace, {"go-build": ""})
    until(lambda: of_kind(store, "build"))
    (build,) = of_kind(store, "build")
    assert build.label in {"make -s", "make setup.py build"}
    assert "product" in entries(store, build)
    write(workspace, {"work": "in progress"})
    until(lambda: [s for s in of_kind(store, "idle") if "work" in entries(store, s)])

    log = home.run(record.id) / "output.log"
    until(lambda: b"child" in log.read_bytes() and b"tick" in log.read_bytes())
    with hold.held(hold.users(home, str(workspace))):
        time.sleep(0.3)  # what was on its way
        size = log.stat().st_size
        time.sleep(0.5)
        assert log.stat().st_size == size, "somebody in there goes on"
    until(lambda: log.stat().st_size > size, 10)

    write(workspace, {"work": "spoiled", "left-out/x": "mine"})
    target = [s for s in of_kind(store, "idle") if "work" in entries(store, s)][-1]
    moat(workspace, "snapshot", "restore", target.id, "--yes")
    assert (workspace / "work").read_text() == "in progress"
    assert (workspace / "left-out/x").read_text() == "mine"
    size = log.stat().st_size
    until(lambda: log.stat().st_size > size, 10)

    before = look(workspace)
    write(workspace, {"work": "spoiled again", "many/file": "m"})
    kill_a_restore(workspace, target.id)
    until(lambda: read_pending(store) is None, 20)
    size = log.stat().st_size
    until(lambda: log.stat().st_size > size, 20)
    assert look(workspace) == before, "the supervisor completed it before the agent went on"

    for command in (["snapshot"], ["snapshot", "diff"], ["review", "--patch"], ["review", "--stat", "--all"]):
        moat(workspace, *command)
    moat(workspace, "stop", "agent")
    assert not marker.exists(), "nothing of the workspace was run on the host"
    check_store(store)
    events = [(entry["event"], entry) for entry in read_lines(home.run(record.id) / "journal.jsonl")]
    kinds = [data(entry)["kind"] for name, entry in events if name == "snapshot.taken"]
    assert {"pre-run", "git", "build", "idle", "manual"} <= set(kinds)
    assert [name for name, _ in events].count("snapshot.restored") == 2
    moat(workspace, "audit", "agent", "--verify")


def data(entry: dict) -> dict:
    return entry.get("data", entry)


def kill_a_restore(workspace: Path, snapshot: str) -> None:
    """When every file is written, and the note of it is still there."""
    program = (
        "import os, signal, sys\nfrom moat.runtime.snapshots import restore\n"
        "restore.Work._finish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from moat.cli import main\nmain(['snapshot', 'restore', sys.argv[1], '--yes'])"
    )
    done = subprocess.run([sys.executable, "-c", program, snapshot], cwd=workspace, timeout=60)
    assert done.returncode == -9


@BOTH
def test_a_tree_that_is_made_to_break_the_walk(workspace: Path, runtime: str) -> None:
    """Deep, odd, special and swapped under the walk, from inside: the snapshot is whole and nothing leaks."""
    (workspace / "agent.yaml").unlink()
    script = r"""
python=$(command -v python3) || true
mkdir -p swap/a && echo inside > swap/a/f
(i=0; while [ $i -lt 400 ]; do mv swap/a swap/b 2>/dev/null; ln -s /etc swap/a; rm -f swap/a; mv swap/b swap/a; i=$((i+1)); done) &
perl -e 'for (1..900) { mkdir "d"; chdir "d" }'
perl -e 'mkdir "many"; for (1..3000) { open(F, ">many/$_") }'
printf x > "$(printf 'new\nline')"; printf x > "$(printf '\377\033[2J')"; ln -s / root; ln -s loop loop; mkfifo pipe
echo ready; wait; sleep 60
"""
    home = Home.from_environment()
    moat(workspace, "run", "--runtime", runtime, "-d", "-n", "evil", "--", "sh", "-c", script)
    record = known.find(home, "evil")
    log = home.run(record.id) / "output.log"
    until(lambda: b"ready" in log.read_bytes())
    store = open_store(home, workspace)
    for _ in range(5):
        taken = json.loads(moat(workspace, "snapshot", "evil", "--json"))
        found = entries(store, store.find(taken["id"]))
        assert not [path for path in found if path.endswith(("/passwd", "/shadow"))]
        assert found["root"].kind == "l"
        assert {"new\nline", os.fsdecode(b"\xff\x1b[2J"), "many/3000"} <= found.keys()
        assert {item["path"] for item in taken["missing"]} >= {"pipe"}
    moat(workspace, "stop", "evil")
    subprocess.run(["rm", "-rf", workspace / "d"], check=True)
