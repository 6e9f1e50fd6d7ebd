"""A supervisor that is killed at any moment of a run's life: what is told of the run, and what is left of it.

Python's audit events are the moments: a hook kills the supervisor before the one that a test names. (With
all of them in turn, about a hundred, this found what the comments in `STAGES` say.)
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from moat.cli import main
from moat.journal import ledger, verify
from moat.paths import Home, runtime_dir
from moat.runtime import known, output_log, records
from moat.runtime.records import RunRecord, State
from tests.runtime.survival_kit import BOTH, leftovers, processes_of, until

Moat = Callable[..., subprocess.CompletedProcess[str]]
# event, what its arguments contain, which of them; a run's state afterwards (None: it has no record)
Stage = tuple[str, str, int, State | None]
BEFORE: Sequence[Stage] = (
    ("open", "/lock'", 0, None),
    ("os.rename", "/run.json", 0, None),  # the directory of sockets was made, and nobody knew of it
    ("open", "/ledger.jsonl", 0, State.LOST),
    ("open", "/supervisor.log", 0, State.LOST),
    ("socket.bind", "/control.sock", 0, State.LOST),
    ("open", "/network.jsonl", 0, State.LOST),
)
AFTER: Sequence[Stage] = (
    ("os.rename", "/run.json", 2, State.LOST),  # it is about to say `running`
    ("os.rename", "/run.json", 3, State.LOST),  # `stopping`
    ("os.rename", "/run.json", 4, State.LOST),  # how it ended
    ("open", "/ledger.jsonl", 1, State.STOPPED),  # the journal was never closed, and the sockets stayed
    ("os.rename", "/run.json", 5, State.STOPPED),
)
STAGES = {
    "embedded": (
        *BEFORE,
        ("open", "/memory.limit_in_bytes", 0, State.LOST),
        ("subprocess.Popen", "sys.argv", 0, State.LOST),
        ("os.rename", "/git.json", 0, State.LOST),
        *AFTER,
        ("shutil.rmtree", "/moat/run_", 0, State.STOPPED),
    ),
    "docker": (
        BEFORE[-1],
        ("os.kill", "", 0, State.LOST),  # a fork held the lock: the run counted as alive for ever
        ("os.mkdir", ".binds/0", 0, State.LOST),
        *AFTER[:2],
        ("shutil.rmtree", "/moat/run_", 0, State.LOST),  # of the mounts; the next are of what is bound
        *AFTER[-1:],
        ("shutil.rmtree", "/moat/run_", 3, State.STOPPED),
    ),
}
HOOK = """\
import os, sys
kind, part, left, warden = os.environ["TEST_CRASH"].split("|")
left, supervisor = int(left), 0
def hook(event, arguments):
    global left, supervisor
    if event == "os.fork" and sys._getframe(1).f_code.co_name == "appoint":
        supervisor = os.getpid()
    elif event == kind and os.getpid() == supervisor and part in repr(arguments):
        left -= 1
        if left < 0:
            supervisor = 0
            if warden:
                with open(f"/proc/self/task/{os.getpid()}/children") as file:
                    os.kill(int(file.read().split()[0]), 9)
            os.kill(os.getpid(), 9)
sys.addaudithook(hook)
"""


@pytest.fixture
def place(home: Path) -> Home:
    return Home.from_environment()


@pytest.mark.parametrize("runtime", BOTH)
def test_killed_at_any_moment(
    place: Home, moat: Moat, runtime: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every second time its warden as well."""
    (tmp_path / "sitecustomize.py").write_text(HOOK)

    def crash(number: int, stage: Stage) -> None:
        event, part, which, state = stage
        spec = f"{event}|{part}|{which}|{'warden' if number % 2 else ''}"
        argv = ("run", "--runtime", runtime, "--no-snapshots", "--name", f"x{number}", "--", "echo", "hi")
        done = moat(*argv, env=os.environ | {"TEST_CRASH": spec, "PYTHONPATH": str(tmp_path)})
        told = "the supervisor of the run died" in done.stderr or "its supervisor was killed" in done.stderr
        expected = (0, False) if state is State.STOPPED else (3, True)
        assert (done.returncode, told) == expected, (stage, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(crash, range(99), STAGES[runtime]))
    shown = {row["name"]: row for row in json.loads(moat("list", "--json").stdout)}
    expected = {f"x{n}": state for n, (*_, state) in enumerate(STAGES[runtime]) if state}
    assert {name: row["state"] for name, row in shown.items()} == expected
    until(lambda: not any(known.is_dead(place, run) for run in known.all_runs(place)))
    until(lambda: not processes_of(place))
    for record in records.read_all(place):
        assert leftovers(record) == [], record
        _tells_the_truth(place, record, capsys)
    assert not [path for path in runtime_dir().iterdir() if path.name != "keyring.lock"]
    for directory in place.runs.iterdir():
        os.utime(directory, (time.time() - 100,) * 2)
    assert main(["clean", "--yes"]) == 0
    assert list(place.runs.iterdir()) == []


def _tells_the_truth(place: Home, record: RunRecord, capsys: pytest.CaptureFixture[str]) -> None:
    lost = record.state is State.LOST
    assert record.error == ("the supervisor was killed" if lost else "")
    assert record.exit_code in ({None, 0} if lost else {0})
    for command in (["status"], ["trace"], ["trace", "--network"]):
        assert main([*command, record.id]) == 0
    assert f"state:      {record.state} " in capsys.readouterr().out
    assert main(["logs", record.id]) == (0 if output_log.exists(place.run(record.id)) else 2)
    assert capsys.readouterr().out in ({"hi\n"} if record.exit_code == 0 else {"hi\n", ""})
    entered = ledger.about(ledger.lines(place), record.id)
    report = verify.run(place, record.id, alive=False)
    assert report.status == (verify.OK if entered else verify.UNSURE), report
