"""`moat snapshot …` and `moat review` as a user types them, with real runs in the embedded runtime."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

from moat.errors import MoatError
from moat.paths import Home
from moat.runtime import control, known
from moat.runtime.snapshots import hold
from moat.runtime.snapshots.pending import read_pending
from moat.runtime.snapshots.store import open_store, stores
from tests.runtime.snapshots.kit import check_store, look, write

pytestmark = pytest.mark.embedded
MOAT = [sys.executable, "-P", "-m", "moat"]


@pytest.fixture
def workspace(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOAT_RUNTIME", "embedded")
    place = tmp_path / "ws"
    write(
        place,
        {"a.txt": "one\n", "src/b.py": "b\n", "keep/c": "c\n", ".gitignore": "*.log\n", "x.log": "log\n"},
    )
    return place


def moat(
    workspace: Path, *words: str | bytes, status: int = 0, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*MOAT, *words],
        cwd=workspace,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        errors="surrogateescape",
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


def listed(workspace: Path, *words: str) -> list[dict]:
    return json.loads(moat(workspace, "snapshot", "list", "--json", *words).stdout)


def files(root: Path) -> dict[bytes, bytes]:
    """Without directories: patches know none."""
    return {path: thing.content for path, thing in look(root).items() if stat.S_ISREG(thing.kind)}


def test_a_run_its_changes_and_the_way_back(workspace: Path) -> None:
    """The whole path: run, list, diff, patch, review, revert, restore, undo, elsewhere, prune, destroy."""
    before = look(workspace)
    script = "echo two >> a.txt; rm src/b.py; echo new > n; chmod 755 keep/c; echo more >> x.log"
    done = moat(workspace, "run", "-n", "first", "--", "sh", "-c", script)
    assert done.stderr == "", "a pipe gets nothing but the command's own"
    (pre,) = listed(workspace)
    assert (pre["kind"], pre["files"]) == ("pre-run", 5)

    assert moat(workspace, "snapshot", "diff").stdout.splitlines() == [
        "M a.txt", "M keep/c (mode 0644 → 0755)", "A n", "D src/b.py", "M x.log",
        "3 files changed, 1 added, 1 removed",
    ]  # fmt: skip
    assert "M a.txt  +1 -0" in moat(workspace, "snapshot", "diff", "--stat").stdout
    found = json.loads(moat(workspace, "review", "first", "--json").stdout)
    assert [c["change"] + c["path"] for c in found["changes"]] == [
        "Ma.txt",
        "Mkeep/c",
        "An",
        "Dsrc/b.py",
        "Mx.log",
    ]

    patch = moat(workspace, "review", "-p").stdout
    copy = workspace.parent / "copy"
    done = moat(workspace, "snapshot", "restore", pre["id"], "--to", str(copy))
    assert look(copy) == before
    subprocess.run(["git", "apply", "-"], cwd=copy, input=patch, text=True, check=True)
    assert files(copy) == files(workspace)

    moat(workspace, "review", "first", "--revert", "a.txt")
    assert (workspace / "a.txt").read_text() == "one\n"
    assert not (workspace / "src/b.py").exists(), "only what was named"
    error = moat(workspace, "review", "first", "--revert", "a.txt", status=2).stderr
    assert error.startswith("moat: error: a.txt is as it was\n")

    reverted = look(workspace)
    error = moat(workspace, "snapshot", "restore", pre["id"], status=2).stderr
    assert "add --yes" in error
    assert look(workspace) == reverted
    done = moat(workspace, "snapshot", "restore", pre["id"], "--yes")
    assert look(workspace) == before
    safety = listed(workspace)[0]
    assert safety["kind"] == "safety"
    assert safety["id"] in done.stderr, "the way back is told"
    assert moat(workspace, "snapshot", "restore", pre["id"], "--yes").stderr.startswith("moat: nothing to do")
    moat(workspace, "snapshot", "restore", safety["id"], "--yes")
    assert look(workspace) == reverted

    shown = moat(workspace, "snapshot", "show", pre["id"], "src/b.py")
    assert shown.stdout == "b\n"
    assert "first" in moat(workspace, "snapshot", "show", pre["id"]).stdout
    moat(workspace, "snapshot", "--label", "by hand")
    assert listed(workspace)[0]["label"] == "by hand"
    would = moat(workspace, "snapshot", "prune", "--keep", "1", "--dry-run").stdout
    gone = moat(workspace, "snapshot", "prune", "--keep", "1").stdout
    assert would == gone
    assert len(gone.split()) == 3, "three safety snapshots"
    assert {s["kind"] for s in listed(workspace)} == {"pre-run", "manual"}
    check_store(open_store(Home.from_environment(), workspace))

    moat(workspace, "run", "-n", "second", "--", "true")
    moat(workspace, "destroy", "first")
    assert [s["kind"] for s in listed(workspace)] == ["pre-run"], "what another run needs is still there"
    check_store(open_store(Home.from_environment(), workspace))
    moat(workspace, "clean", "--yes")
    assert stores(Home.from_environment()) == [], "nobody needs anything any more"


def test_without_snapshots(workspace: Path) -> None:
    moat(workspace, "run", "--no-snapshots", "--", "true")
    assert not (Home.from_environment().root / "snapshots").exists()
    assert "--no-snapshots" in moat(workspace, "review", status=2).stderr
    write(workspace, {"agent.yaml": "snapshots: {disabled: true}\n"})
    moat(workspace, "run", "--accept-config", "--", "true")
    assert not (Home.from_environment().root / "snapshots").exists()


def test_the_configuration_counts(workspace: Path) -> None:
    config = (
        "snapshots: {exclude: {ignore_gitignore: false, additional: [keep/]}, retention: {max_count: 2}}\n"
    )
    write(workspace, {"agent.yaml": config})
    moat(workspace, "run", "-n", "r", "--", "true")
    for number in range(3):
        write(workspace, {"a.txt": f"{number}"})
        moat(workspace, "snapshot", "r", "--label", str(number))
    found = listed(workspace, "r")
    assert [(s["kind"], s["label"]) for s in found] == [("manual", "2"), ("pre-run", "")]
    assert found[0]["exclude"] == ["keep/"], "by hand the same is left out"
    files = moat(workspace, "snapshot", "show", found[0]["id"], "--files").stdout
    assert "a.txt" in files
    assert "x.log" not in files
    assert "keep" not in files


def test_a_snapshot_that_fails_keeps_the_command_from_starting(workspace: Path) -> None:
    """Nothing is run without the snapshot that was promised; --no-snapshots is the way around."""
    store = open_store(Home.from_environment(), workspace)
    store.root.mkdir(parents=True, mode=0o700)
    (store.root / "packs").write_text("in the way")
    error = moat(workspace, "run", "--", "touch", "ran", status=3).stderr
    assert error.startswith("moat: error: cannot write snapshots in ")
    assert not (workspace / "ran").exists()
    moat(workspace, "run", "--no-snapshots", "--", "touch", "ran")
    assert (workspace / "ran").exists()


def test_a_restore_that_was_cut_off(workspace: Path) -> None:
    """Killed in the middle: no run starts there or in it; `--continue` completes it.

    Seen failing without `Unfinished` among the parts.
    """
    moat(workspace, "run", "--", "true")
    (pre,) = listed(workspace)
    before = look(workspace)
    write(workspace, {f"many/{n}": "x" for n in range(300)} | {"a.txt": "changed"})
    killing = (
        "import os, signal\nfrom moat.runtime.snapshots import restore\n"
        "restore.Work._finish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"from moat.cli import main\nmain(['snapshot', 'restore', '{pre['id']}', '--yes'])"
    )
    killed = subprocess.run([sys.executable, "-c", killing], cwd=workspace, timeout=60)
    assert killed.returncode == -9
    store = open_store(Home.from_environment(), workspace)
    assert read_pending(store) is not None
    for words in (["run"], ["run", "--no-snapshots"], ["run", "--no-snapshots", "keep"]):
        error = moat(workspace, *words, "--", "true", status=3).stderr
        assert "`moat snapshot restore --continue` completes it" in error
    moat(workspace, "snapshot", "restore", "--continue")
    assert look(workspace) == before
    moat(workspace, "run", "--", "true")


def test_names_and_contents_cannot_draw_on_a_terminal(workspace: Path) -> None:
    """Seen failing with `safe` returning its argument."""
    evil = "\x1b[2J\x1b[31mred"
    moat(
        workspace,
        "run",
        "--",
        "sh",
        "-c",
        f"echo '{evil}' > '{evil}'; printf 'raw' > \"$(printf 'a\\377b')\"",
    )
    for command in (["snapshot", "diff"], ["review", "--patch"], ["review", "--stat"]):
        screen = pexpect.spawn(
            sys.executable, ["-P", "-m", "moat", *command], cwd=str(workspace), encoding=None, timeout=30
        )
        text = screen.read()
        assert b"red" in text
        assert b"\x1b[2J" not in text
    found = json.loads(moat(workspace, "review", "--json").stdout)["changes"]
    assert {"path": "a�b", "path_base64": "Yf9i"}.items() <= found[1].items()


def test_the_screen_of_a_review(workspace: Path) -> None:
    """On a terminal: the line after the run, the list, a patch, one file taken back."""
    environment = {**os.environ, "TERM": "xterm"}
    options = {
        "cwd": str(workspace),
        "env": environment,
        "encoding": "utf-8",
        "timeout": 30,
        "dimensions": (24, 80),
    }
    run = pexpect.spawn(
        sys.executable,
        ["-P", "-m", "moat", "run", "-n", "shown", "--", "sh", "-c", "echo 2 >> a.txt; rm keep/c"],
        **options,
    )
    run.expect("moat: 1 file changed, 1 removed — moat review shown")
    run.expect(pexpect.EOF)
    screen = pexpect.spawn(sys.executable, ["-P", "-m", "moat", "review"], **options)
    screen.expect("M a.txt")
    screen.expect("D keep/c")
    screen.send("\r")
    screen.expect(r"\+2")
    screen.send("q")
    screen.expect("D keep/c")
    screen.send("j")
    screen.send("r")
    screen.expect("Take back")
    screen.send("y")
    screen.expect("n back:")
    screen.send("q")
    screen.expect("1 taken back")
    screen.expect(pexpect.EOF)
    assert (workspace / "keep/c").read_text() == "c\n"
    assert (workspace / "a.txt").read_text() == "one\n2\n"


def test_a_small_workspace_costs_little(workspace: Path) -> None:
    """Taking the pre-run snapshot of a few files must not be noticed; medians of a machine under load."""
    program = (
        "import sys, time\nfrom moat.paths import Home\nfrom moat.runtime.snapshots.store import Kind, open_store\n"
        "from moat.runtime.snapshots.take import Wish, take\n"
        "store = open_store(Home.from_environment(), sys.argv[1])\ntimes = []\n"
        "for _ in range(9):\n began = time.perf_counter()\n with store.exclusive(): take(store, Wish(kind=Kind.MANUAL))\n"
        " times.append(time.perf_counter() - began)\nprint(sorted(times)[4])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, workspace], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 0.1


def test_words_that_mean_nothing(workspace: Path) -> None:
    moat(workspace, "run", "-n", "only", "--", "true")
    assert (
        "no snapshot 'snap_ffffffffffff'"
        in moat(workspace, "snapshot", "show", "snap_ffffffffffff", status=2).stderr
    )
    assert "is not the id of a snapshot" in moat(workspace, "snapshot", "show", "other", status=2).stderr
    assert "no run 'nobody'" in moat(workspace, "snapshot", "list", "nobody", status=2).stderr
    assert (
        "is not in" in moat(workspace, "snapshot", "restore", "only", "../outside", "--yes", status=2).stderr
    )
    assert (
        "no missing.txt in" in moat(workspace, "snapshot", "restore", "missing.txt", "--yes", status=2).stderr
    )
    assert (
        "two snapshots can be compared"
        in moat(workspace, "snapshot", "diff", *["snap_1"] * 3, status=2).stderr
    )


def test_a_restore_waits_for_nobody_who_is_about_to_write(
    workspace: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run waits for its first snapshot; later its supervisor stops to answer just when it is asked."""
    state = Home.from_environment()
    moat(workspace, "snapshot")
    with open_store(state, workspace).exclusive():
        starting = subprocess.Popen(
            [*MOAT, "run", "-d", "-n", "slow", "--", "sleep", "60"],
            cwd=workspace, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        until(lambda: known.all_runs(state))
        assert refused(state, workspace) == (
            "slow is just starting in this workspace",
            "try again in a moment, or: moat stop slow",
        )
    assert starting.wait(30) == 0
    pid, pack = known.find(state, "slow").pid, control.pack

    def freeze(frame: control.Frame, *payload: bytes) -> bytes:
        if frame is control.Frame.PAUSE:
            os.kill(pid, signal.SIGSTOP)
        return pack(frame, *payload)

    monkeypatch.setattr(hold, "_PATIENCE", 0.5)
    monkeypatch.setattr(control, "pack", freeze)
    try:
        told = refused(state, workspace)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert told == ("slow cannot be paused: its supervisor does not answer", "moat stop slow")
    moat(workspace, "stop", "slow")


def refused(state: Home, workspace: Path) -> tuple[str, str | None]:
    with pytest.raises(MoatError) as caught, hold.held(hold.users(state, str(workspace))):
        pytest.fail("it was paused")
    return str(caught.value), caught.value.hint


def until(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_done_without_a_run_is_in_the_signed_ledger(workspace: Path, home: Path) -> None:
    """Seen failing without `ledger.note`: nothing is shown."""
    first = moat(workspace, "snapshot", "--label", "mine").stdout.strip()
    (workspace / "a.txt").write_text("two")
    moat(workspace, "snapshot", "restore", first, "--yes")
    shown = moat(workspace, "audit", "--workspace", ".").stdout
    assert [line.split()[1] for line in shown.splitlines()] == ["snapshot.taken", "snapshot.restored"]
    assert f"id={first}" in shown
    assert f"workspace={workspace}" in shown
    assert moat(workspace, "audit", "--workspace", "..").stdout == ""
    assert moat(workspace, "audit", "--workspace", ".", "--verify").stdout.startswith("the ledger: proven\n")
    ledger = home / ".moat/journal/ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"label":"mine"', '"label":"evil"'))
    told = moat(workspace, "audit", "--workspace", ".", "--verify", status=1).stdout
    assert told.startswith("the ledger: TAMPERED\n")
    moat(workspace, "audit", "--workspace", ".", "-f", status=2)


def test_what_cannot_be_recorded_is_told(workspace: Path, home: Path) -> None:
    moat(workspace, "snapshot")
    ledger = home / ".moat/journal/ledger.jsonl"
    ledger.unlink()
    ledger.mkdir()
    failed = moat(workspace, "snapshot", status=3)
    assert "it is done, and could not be recorded: Is a directory" in failed.stderr
