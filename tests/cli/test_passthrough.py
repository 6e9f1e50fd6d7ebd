"""Every byte as it came, and nobody who watches can hold a run up or end it: floods, stuck and vanished viewers."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

from tests.cli.test_attach import BOTH

Moat = Callable[..., subprocess.CompletedProcess[str]]

# Paced, so that whoever reads as fast as a terminal does sees all of it; then as fast as it goes.
PROGRAM = """
stty raw -echo
printf ready
while ! test -e go; do sleep 0.05; done
for part in $(seq 0 63); do cat garbage.$part; sleep 0.02; done
printf 'the end'
while ! test -e flood; do sleep 0.05; done
head -c 20000000 /dev/urandom
touch flooded
printf 'all is over'
"""


class Reader:
    """A terminal that takes what comes as fast as it can."""

    def __init__(self, argv: list[str], cwd: Path) -> None:
        self.child = pexpect.spawn(argv[0], argv[1:], cwd=cwd, dimensions=(24, 80))
        self.raw = bytearray()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                self.raw += os.read(self.child.child_fd, 65536)
            except OSError:
                return

    def until(self, text: bytes, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.raw:
            assert time.monotonic() < deadline, bytes(self.raw[-200:])
            time.sleep(0.02)

    def end(self) -> int:
        self._thread.join(20)
        self.child.wait()
        return int(self.child.exitstatus or 0)


def garbage(seed: int) -> bytes:
    """Every byte there is, sequences cut anywhere, strings that never end, broken UTF-8."""
    chance = random.Random(seed)
    pieces = [
        b"\x1b[",
        b"\x1b]0;",
        b"\x1bP",
        b"\x1b[?1049",
        b"\x9b",
        b"\xc3",
        b"\xf0\x9f",
        b"\x1b[>1u",
        b"\x1b\\",
        b"\x00",
    ]
    return b"".join(chance.choice(pieces) + chance.randbytes(chance.randrange(60)) for _ in range(1000))


@pytest.mark.parametrize("runtime", BOTH)
def test_bytes_floods_and_those_who_watch(moat: Moat, moat_bin: str, tmp_path: Path, runtime: str) -> None:
    """Seen failing with a viewer that is waited for (`SocketViewer.skip` gone): the flood never ends.

    And with one byte of `Display.output` changed, and without `_Attachment._outcome`: who stood still is told 3.
    """
    workspace = tmp_path / "workspace"
    workspace.mkdir(exist_ok=True)
    parts = [garbage(seed) for seed in range(64)]
    for number, part in enumerate(parts):
        (workspace / f"garbage.{number}").write_bytes(part)
    assert (
        moat("run", "-d", "-i", "--name", "noisy", "--runtime", runtime, "--", "sh", "-c", PROGRAM).returncode
        == 0
    )
    first, stuck, gone = (Reader([moat_bin, "attach", "noisy"], workspace) for _ in range(3))
    for viewer in (first, stuck, gone):
        viewer.until(b"ready")
    (workspace / "go").touch()
    first.until(b"the end")
    assert b"ready" + b"".join(parts) + b"the end" in first.raw, "not one byte was changed, lost or added"

    os.kill(stuck.child.pid, signal.SIGSTOP)
    (workspace / "flood").touch()
    os.kill(gone.child.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    sizes = 0
    while not (workspace / "flooded").exists():  # and a storm of sizes meanwhile
        assert time.monotonic() < deadline, "somebody holds the run up"
        sizes += 1
        first.child.setwinsize(20 + sizes % 30, 60 + sizes % 70)
        time.sleep(0.005)
    assert first.end() == 0
    (run,) = json.loads(moat("list", "--json").stdout)
    assert (run["state"], run["exit_code"]) == ("stopped", 0)
    (log,) = (tmp_path / "home/.moat/runs").glob("*/output.log")
    assert log.stat().st_size == len(b"readythe endall is over") + sum(map(len, parts)) + 20_000_000
    if runtime == "embedded":
        time.sleep(5.5)  # by now the supervisor is gone, and told it nothing
    os.kill(stuck.child.pid, signal.SIGCONT)
    assert stuck.end() == 0
