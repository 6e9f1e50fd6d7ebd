"""Records on disk: atomic, found by id, prefix or name, settled once when the owner died."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from moat.errors import RunNotFoundError, UsageError
from moat.paths import Home
from moat.runtime import known, records
from moat.runtime.names import random_name
from moat.runtime.records import Ownership, RunRecord, State
from tests.journal.kit import fill, small_disk


@pytest.fixture
def place(tmp_path: Path) -> Home:
    return Home(tmp_path / "moat")


def make(
    place: Home, run_id: str, name: str = "a", state: State = State.STOPPED, at: float = 1.0
) -> RunRecord:
    record = RunRecord(
        id=run_id, name=name, workspace="/w", argv=("true",), created_at=at, state=state, pid=os.getpid()
    )
    records.write(place, record)
    return record


def test_a_record_survives_the_disk(place: Home) -> None:
    record = RunRecord(
        id="run_0123456789ab",
        name="x",
        workspace="/w",
        argv=("sh", "-c", "é"),
        created_at=12.5,
        state=State.FAILED,
        grants=("anthropic",),
        exit_code=7,
        error="exit status 7",
    )
    records.write(place, record)
    assert records.read(place, record.id) == record
    path = place.run(record.id) / "run.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_fields_of_a_newer_moat_are_ignored(place: Home) -> None:
    record = make(place, "run_0123456789ab")
    path = place.run(record.id) / "run.json"
    path.write_text(path.read_text().replace("{", '{"invented": 1,', 1))
    assert records.read(place, record.id) == record


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"state": "odd"}', "\x00"])
def test_what_is_no_record_is_skipped(place: Home, content: str) -> None:
    make(place, "run_000000000001")
    broken = place.run("run_000000000002")
    broken.mkdir()
    (broken / "run.json").write_text(content)
    (place.runs / "stray").mkdir()
    assert [run.id for run in records.read_all(place)] == ["run_000000000001"]


def test_newest_first(place: Home) -> None:
    for number, at in ((1, 5.0), (2, 9.0), (3, 7.0)):
        make(place, f"run_00000000000{number}", at=at)
    assert [run.id[-1] for run in records.read_all(place)] == ["2", "3", "1"]


def test_resolution(place: Home) -> None:
    make(place, "run_aa0000000001", "web")
    make(place, "run_aa0000000002", "api")
    make(place, "run_bb0000000003", "api", State.RUNNING)
    assert records.find(place, "run_aa0000000001").name == "web"
    assert records.find(place, "run_bb").id == "run_bb0000000003"
    assert records.find(place, "web").id == "run_aa0000000001"
    assert records.find(place, "api").id == "run_bb0000000003", "the living one of two with a name"
    with pytest.raises(RunNotFoundError, match="means 2 runs") as caught:
        records.find(place, "run_aa")
    assert "run_aa0000000001" in str(caught.value)
    assert "run_aa0000000002" in str(caught.value)
    with pytest.raises(RunNotFoundError, match="no run 'aa'"):
        records.find(place, "aa")
    with pytest.raises(RunNotFoundError, match="no run ''"):
        records.find(place, "")


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a" * 64, "a.b", "a b", "ä"])
def test_a_name_is_a_dns_label(name: str) -> None:
    with pytest.raises(UsageError):
        records.check_name(name)


def test_random_names_are_names() -> None:
    for _ in range(200):
        assert records.check_name(random_name()).count("-") == 1


def test_ids() -> None:
    assert len({records.new_id() for _ in range(100)}) == 100
    assert len(records.new_id()) == 16


def test_a_living_owner_is_seen_and_never_written_to(place: Home) -> None:
    record = make(place, "run_000000000001", state=State.RUNNING)
    path = place.run(record.id) / "run.json"
    before = path.stat()
    with Ownership(place.run(record.id)):
        assert records.owned(place.run(record.id))
        with pytest.raises(OSError, match="unavailable"):
            Ownership(place.run(record.id))
        assert known.all_runs(place) == [record]
        assert records.settle(place, record) == record
    after = path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_killed_owner_is_recorded_once(place: Home) -> None:
    record = make(place, "run_000000000001", state=State.RUNNING)
    directory = place.run(record.id)
    script = (
        "import sys, pathlib, time; from moat.runtime.records import Ownership;"
        "o = Ownership(pathlib.Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", script, str(directory)], stdout=subprocess.PIPE)
    assert owner.stdout
    assert owner.stdout.readline() == b"held\n"
    assert known.all_runs(place)[0].state is State.RUNNING
    owner.kill()
    owner.communicate()
    seen = known.all_runs(place)[0]
    assert (seen.state, seen.error) == (State.LOST, "the supervisor was killed")
    dead = known.clear(place, record)
    assert (dead.state, dead.error) == (State.LOST, "the supervisor was killed")
    assert dead.ended_at is not None
    assert abs(dead.ended_at - time.time()) < 10
    assert known.all_runs(place)[0] == dead, "a terminal state is not rewritten"


def test_many_readers_settle_a_run_once(place: Home) -> None:
    record = make(place, "run_000000000001", state=State.RUNNING)
    (place.run(record.id) / "lock").touch()
    results: list[RunRecord] = []
    threads = [
        threading.Thread(target=lambda: results.append(records.settle(place, record))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert len({found.ended_at for found in results}) == 1
    assert records.read(place, record.id) == results[0]


def test_a_record_is_written_to_a_full_disk(tmp_path: Path) -> None:
    """Seen failing without `records._write_over`: a run that ended well would be told as lost."""
    with small_disk(tmp_path / "disk") as disk:
        place = Home(disk)
        record = make(place, "run_000000000001", state=State.RUNNING)
        fill(disk)
        ended = dataclasses.replace(record, state=State.FAILED, exit_code=7, error="exit status 7")
        records.write(place, ended)
        assert records.read(place, record.id) == ended
        assert os.listdir(place.run(record.id)) == ["run.json"]


def test_the_only_living_run(place: Home) -> None:
    with pytest.raises(RunNotFoundError, match="no run is running"):
        known.one_alive(place)
    alive = make(place, "run_000000000001", state=State.RUNNING)
    make(place, "run_000000000002")
    with Ownership(place.run(alive.id)):
        assert known.one_alive(place) == alive
        other = dataclasses.replace(alive, id="run_000000000003")
        records.write(place, other)
        with Ownership(place.run(other.id)), pytest.raises(RunNotFoundError, match="means 2 runs"):
            known.one_alive(place)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59, "59s"), (60, "1m"), (300, "5m"), (3599, "59m"), (7200, "2h"), (86400, "1d"), (-5, "0s")],
)
def test_ages(seconds: float, text: str) -> None:
    assert records.describe_age(1000.0, now=1000.0 + seconds) == text
