"""Killed at every single step, full disks, several at once: nothing that was kept is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moat.runtime.snapshots import retention
from moat.runtime.snapshots.errors import SnapshotError
from moat.runtime.snapshots.objects import SMALL
from moat.runtime.snapshots.pending import read_pending
from moat.runtime.snapshots.restore import restore
from moat.runtime.snapshots.store import Kind
from moat.runtime.snapshots.take import Wish, take
from moat.runtime.snapshots.watcher import recover
from tests.conftest import REPOSITORY
from tests.namespaces import apart
from tests.runtime.snapshots.kit import bring_back, check_store, entries, keep, look, store_for, write

STEPS = ("open", "write", "rename", "replace", "unlink", "rmdir", "mkdir", "fsync", "link", "symlink", "utime",
         "fchmod", "ftruncate")  # fmt: skip


def killed_at(step: int, act: Callable[[], object]) -> bool:
    """Run `act` in a child that is killed at its `step`th call that touches a disk. False: it came to its end."""
    child = os.fork()
    if child == 0:
        left = step

        def dying(real):
            def call(*args, **kwargs):
                nonlocal left
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                return real(*args, **kwargs)

            return call

        for name in STEPS:
            setattr(os, name, dying(getattr(os, name)))
        try:
            act()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def waiting_child(act: Callable[[], object]) -> tuple[int, int]:
    """A child that does `act` at the word; forked before any lock is taken, which it would share."""
    hear, go = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.read(hear, 1)
            act()
            status = 0
        finally:
            os._exit(status)
    os.close(hear)
    return child, go


def test_taking_killed_at_every_step(tmp_path: Path) -> None:
    store, workspace = store_for(tmp_path)
    write(workspace, {"a": "1", "d/b": "2", "big": os.urandom(SMALL + 5)})
    first = keep(store)
    write(workspace, {"a": "changed", "new": "n", "big": os.urandom(SMALL + 7)})
    step = 0
    while killed_at(step, lambda: keep(store)):
        check_store(store)
        assert store.all()[0] == first
        step += 1
    assert step > 15
    for snapshot in store.all()[1:]:
        assert entries(store, snapshot)["a"].size == len("changed")
    keep(store)
    leftovers = [p for p in store.root.rglob("*") if p.name.startswith(("tmp-", ".")) and p.is_file()]
    assert not leftovers


def test_removing_killed_at_every_step(tmp_path: Path) -> None:
    store, workspace = store_for(tmp_path)
    write(workspace, {f"f{n}": f"{n}" * 100 for n in range(20)} | {"big": os.urandom(SMALL + 5)})
    first = keep(store)
    write(workspace, {f"f{n}": f"other {n}" * 100 for n in range(15)} | {"big": os.urandom(SMALL + 9)})
    second = keep(store)

    def prune() -> None:
        with store.exclusive():
            retention.remove(store, [first])

    step = 0
    while killed_at(step, prune):
        check_store(store)
        assert second in store.all()
        step += 1
    assert step > 6
    assert store.all() == [second]
    check_store(store)
    before = look(workspace)
    write(workspace, {"f1": "x"})
    bring_back(store, second)
    assert look(workspace) == before


def test_restoring_killed_at_every_step(tmp_path: Path) -> None:
    """At any step everything from before is in the safety snapshot, and what was begun is completed."""
    origin = tmp_path / "origin"
    store, workspace = store_for(tmp_path)
    write(workspace, {"a": "1", "d/b": "2", "gone/x": "x", "type": "file", "big": os.urandom(SMALL + 5)})
    os.link(workspace / "a", workspace / "twin")
    (workspace / "link").symlink_to("a")
    target = keep(store)
    wanted = look(workspace)
    write(workspace, {"a": "changed", "new/y": "n", "big": os.urandom(SMALL + 7)})
    shutil.rmtree(workspace / "gone")
    for name in ("type", "link"):
        (workspace / name).unlink()
    write(workspace, {"type/inside": "i"})
    before = look(workspace)
    subprocess.run(["cp", "-a", tmp_path / "ws", origin], check=True)
    step, cut_off = 0, 0
    while killed_at(step, lambda: bring_back(store, target)):
        check_store(store)
        pending = read_pending(store)
        if pending is None:
            assert look(workspace) in (before, wanted), f"step {step}"
        else:
            cut_off += 1
            elsewhere = tmp_path / "elsewhere"
            safety = store.find(pending.safety)
            from moat.runtime.snapshots.restore import restore_to

            restore_to(store, safety, elsewhere)
            assert look(elsewhere) == before, f"step {step}: something is lost"
            shutil.rmtree(elsewhere)
            assert recover(store, "") == target
        assert look(workspace) == (before if pending is None and look(workspace) == before else wanted)
        shutil.rmtree(workspace)
        subprocess.run(["cp", "-a", origin, workspace], check=True)
        with store.exclusive():
            retention.remove(store, [s for s in store.all() if s.kind is Kind.SAFETY])
        step += 3  # coprime to what one file takes: over the files every step is met
    assert cut_off > 10
    assert read_pending(store) is None
    assert look(workspace) == wanted


def test_a_restore_that_was_cut_off_pins_what_it_needs(tmp_path: Path) -> None:
    store, workspace = store_for(tmp_path)
    write(workspace, {"a": "1", "b": "1"})
    target = keep(store, run="run_1")
    write(workspace, {"a": "2", "b": "2"})
    step = 0
    while killed_at(step, lambda: bring_back(store, target)) and read_pending(store) is None:
        step += 1
    pending = read_pending(store)
    assert pending is not None
    with store.exclusive():
        retention.remove(store, store.all())
    assert {snapshot.id for snapshot in store.all()} == {target.id, pending.safety}
    recover(store, "")
    assert (workspace / "a").read_text() == "1"


def test_a_damaged_object_is_told_and_nothing_is_touched_by_it(tmp_path: Path) -> None:
    store, workspace = store_for(tmp_path)
    write(workspace, {"a": "original", "z": "fine"})
    snapshot = keep(store)
    (pack,) = (store.root / "packs").glob("*.pack")
    pack.write_bytes(pack.read_bytes().replace(b"original", b"forgery!"))
    write(workspace, {"a": "mine", "z": "mine too"})
    with pytest.raises(SnapshotError, match="damaged"):
        bring_back(store, snapshot)
    assert (workspace / "a").read_text() == "mine"
    assert not list(workspace.glob(".moat-restore-*"))


ON_A_SMALL_DISK = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.runtime.snapshots.kit import *
from moat.runtime.snapshots.errors import SnapshotError
place = Path(sys.argv[1])
os.environ["MOAT_HOME"] = str(place / "small")
ws = place / "ws"
store = open_store(Home(place / "small"), ws)
write(ws, {"kept": "k", "many/a": os.urandom(900000)})
first = keep(store)
for what in ({"big": os.urandom(9 << 20)}, {f"f{n}": os.urandom(500000) for n in range(20)}):
    write(ws, what)
    try:
        keep(store)
    except SnapshotError as error:
        assert str(error).startswith("no space left for a snapshot in"), error
        assert "moat snapshot prune" in error.hint
    else:
        raise AssertionError("there was space")
    assert store.all() == [first]
    check_store(store)
    for name in what:
        (ws / name).unlink()
free = os.statvfs(place / "small")
assert free.f_bavail * free.f_frsize > 6 << 20, "what was begun is gone again"
write(ws, {"kept": "other"})
assert bring_back(store, first).changed == 1
print("good")
"""


def test_a_full_disk_is_a_clear_error_and_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir(mode=0o700)
    (tmp_path / "ws").mkdir()
    script = 'mount -t tmpfs -o size=8m,mode=700 none "$1" && shift && exec "$@"'
    done = subprocess.run(
        [*apart("--mount"), "sh", "-c", script, "sh", tmp_path / "small",
         sys.executable, "-c", ON_A_SMALL_DISK, tmp_path, REPOSITORY],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.stdout == "good\n", done.stderr


def test_several_processes_take_turns(tmp_path: Path) -> None:
    """Four processes take and remove in one store while the workspace changes; seen failing without the lock."""
    store, workspace = store_for(tmp_path)
    write(workspace, {f"d/{n}": str(n) for n in range(30)})
    keep(store)

    def work(number: int) -> None:
        for turn in range(8):
            write(workspace, {f"d/{number}": f"{number} {turn}" * 10})
            with store.exclusive():
                take(store, Wish(kind=Kind.IDLE, run=f"run_{number}"))
                if turn % 2:
                    retention.remove(store, store.of_run(f"run_{number}")[:-1])

    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work(number)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    check_store(store)
    assert len(store.all()) == 1 + 4


def test_a_reader_is_waited_for(tmp_path: Path) -> None:
    store, workspace = store_for(tmp_path)
    write(workspace, {"a": "1"})
    keep(store)
    waited = []

    def write_too() -> None:
        with store.exclusive(lambda: waited.append(1)):
            os._exit(7 if waited else 8)

    child, go = waiting_child(write_too)
    with store.reading():
        os.write(go, b"1")
        time.sleep(0.3)
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_store_removed_while_one_waits_is_made_anew(tmp_path: Path) -> None:
    store, workspace = store_for(tmp_path)
    write(workspace, {"a": "1"})
    keep(store)
    child, go = waiting_child(lambda: keep(store))
    with store.exclusive():
        os.write(go, b"1")
        time.sleep(0.3)
        store.destroy()
    assert os.waitpid(child, 0)[1] == 0
    check_store(store)
    assert len(store.all()) == 1


def test_what_changed_after_the_safety_snapshot_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's editor is not paused. Seen failing with `_is_still` returning True."""
    from moat.runtime.snapshots import restore as restoring

    store, workspace = store_for(tmp_path)
    write(workspace, {"a": "1", "b": "1"})
    target = keep(store)
    write(workspace, {"a": "2", "b": "2", "new": "n"})
    real = restoring.Work.run

    def editing(self, changes, directories):
        write(workspace, {"a": "edited just now", "new": "edited as well"})
        real(self, changes, directories)

    monkeypatch.setattr(restoring.Work, "run", editing)
    with store.exclusive():
        done = restore(store, target)
    assert {item.path: item.why for item in done.left} == {
        "a": "it changed meanwhile",
        "new": "it changed meanwhile",
    }
    assert (workspace / "a").read_text() == "edited just now"
    assert (workspace / "new").read_text() == "edited as well"
    assert (workspace / "b").read_text() == "1"


def test_what_appeared_after_the_safety_snapshot_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen failing without `_make`'s look at what is there: the file is lost; without `_directory`'s, nothing is told."""
    from moat.runtime.snapshots import restore as restoring

    store, workspace = store_for(tmp_path)
    write(workspace, {"file": "1", "directory/inner": "1", "other/inner": "1"})
    target = keep(store)
    for path in ("file", "directory", "other"):
        subprocess.run(["rm", "-r", workspace / path], check=True)
    real = restoring.Work.run

    def editing(self, changes, directories):
        write(workspace, {"file": "made just now", "directory": "as well"})
        real(self, changes, directories)

    monkeypatch.setattr(restoring.Work, "run", editing)
    with store.exclusive():
        done = restore(store, target)
    assert {item.path: item.why for item in done.left} == {
        "file": "something that is not in the snapshots is in its place",
        "directory": "not a directory",
        "directory/inner": "not a directory",
    }
    assert (workspace / "file").read_text() == "made just now"
    assert (workspace / "directory").read_text() == "as well"
    assert (workspace / "other/inner").read_text() == "1"
