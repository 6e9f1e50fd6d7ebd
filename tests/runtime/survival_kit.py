"""What the tests of survival stand on: whether a run goes on, and what is left of one that does not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moat.paths import Home, runtime_dir
from moat.runtime import engine_socket, procfs, records
from moat.runtime.records import RunRecord

BOTH = [
    pytest.param("embedded", marks=pytest.mark.embedded),
    pytest.param("docker", marks=pytest.mark.docker),
]
# Asks for the metadata address over and over and writes down what it got: 403 means that its proxy is there.
AGENT = """\
import os, time, urllib.error, urllib.request
while True:
    try:
        said = urllib.request.urlopen("http://169.254.169.254/", timeout=5).status
    except urllib.error.HTTPError as error:
        said = error.code
    except OSError as error:
        said = type(error).__name__
    with open("beat.new", "w") as file:
        file.write(f"{said} {time.monotonic()}")
    os.replace("beat.new", "beat")
    print(said, flush=True)
    time.sleep(0.1)
"""


def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def goes_on(workspace: Path) -> bool:
    """Whether the agent lives and reaches its proxy."""
    beat = workspace / "beat"
    until(beat.exists)
    before = beat.read_text()
    until(lambda: beat.read_text() != before)
    return beat.read_text().startswith("403 ")


def is_still(workspace: Path) -> bool:
    before = (workspace / "beat").read_text()
    time.sleep(0.4)
    return (workspace / "beat").read_text() == before


def only(place: Home) -> RunRecord:
    (record,) = records.read_all(place)
    return record


def is_docker(record: RunRecord) -> bool:
    return record.runtime == "docker"


def containers(run_id: str) -> list[dict[str, Any]]:
    return engine_socket.labelled(f"moat.run={run_id}")


def processes_of(place: Home) -> list[int]:
    """Moat's own processes of this home: what would not survive a restart."""
    return _with_mark(f"MOAT_HOME={place.root}")


def _with_mark(mark: str) -> list[int]:
    return [pid for pid in procfs._pids() if pid != os.getpid() and procfs._has_mark(pid, mark.encode())]


def leftovers(record: RunRecord) -> list[str]:
    """What there is of a run beside its record: processes, mounts, control groups, sockets, containers."""
    found = [f"process {pid}" for pid in _with_mark(f"{procfs.MARK}={record.id}")]
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if record.id in line]
    found += [place for place, _, _ in os.walk("/sys/fs/cgroup") if place.endswith(record.id)]
    found += [str(path) for path in runtime_dir().iterdir() if record.id in path.name]
    held = containers(record.id) if is_docker(record) else []
    return found + [f"container {item['Id']}" for item in held]
