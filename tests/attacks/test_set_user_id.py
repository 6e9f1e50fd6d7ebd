"""What a sandbox leaves in the workspace runs with nobody's rights but those of whoever starts it.

In a workspace of root's a file of the agent is root's on the host: with the set-user-ID bit any user of the
machine would be root by it. Seen failing with `refused_bits` returning 0: every attempt but `openat2` succeeds.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.git.kit import RUNTIMES

ATTEMPTS = """
import ctypes, json, os, platform, struct
libc = ctypes.CDLL(None, use_errno=True)
x86 = platform.machine() == "x86_64"
MODE, AT = 0o6755, -100

def call(number, *arguments):
    result = libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

def made(name):
    with open(name, "w") as file:
        file.write("#!/bin/sh\\nid\\n")
    return name

def unnamed():
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR, MODE)
    call(265 if x86 else 37, AT, f"/proc/self/fd/{fd}".encode(), AT, b"tmpfile", 0x400)

tries = {
    "chmod": lambda: os.chmod(made("chmod"), MODE),
    "suid": lambda: os.chmod(made("suid"), 0o4755),
    "sgid": lambda: os.chmod(made("sgid"), 0o2755),
    "sgid at once": lambda: os.open("at once", os.O_CREAT | os.O_WRONLY, 0o2755),
    "fchmod": lambda: os.fchmod(os.open(made("fchmod"), os.O_RDONLY), MODE),
    "fchmodat": lambda: call(268 if x86 else 53, AT, made("fchmodat").encode(), MODE),
    "fchmodat2": lambda: call(452, AT, made("fchmodat2").encode(), MODE, 0),
    "high bits": lambda: call(268 if x86 else 53, AT, made("high").encode(), ctypes.c_ulong(MODE | 1 << 40)),
    "open": lambda: os.open("open", os.O_CREAT | os.O_WRONLY, MODE),
    "tmpfile": unnamed,
    "openat2": lambda: call(437, AT, b"openat2", struct.pack("QQQ", os.O_CREAT | os.O_WRONLY, MODE, 0), 24),
    "mknod": lambda: os.mknod("mknod", 0o100000 | MODE),
    "creat": lambda: call(85, b"creat", MODE) if x86 else os.chmod(made("creat"), MODE),
}
found = {}
for name, attempt in tries.items():
    try:
        attempt()
        found[name] = 0
    except OSError as error:
        found[name] = error.errno
os.chmod(made("ordinary"), 0o751)
os.mkdir("directory", 0o2777)
os.chmod("directory", 0o1777)
print(json.dumps(found))
"""


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("how", ["run", "exec"])
def test_no_file_gets_the_rights_of_its_owner(
    moat: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, runtime: str, how: str
) -> None:
    """Neither by the run's command nor by one of `moat exec`. Seen failing with `seccomp.install()` in `enter`."""
    place = tmp_path / "workspace"
    (place / "attempts.py").write_text(ATTEMPTS)
    os.chown(place, 0, 0)
    command = ["--", "python3", "attempts.py"]
    if how == "run":
        done = moat("run", "--runtime", runtime, *command)
    else:
        assert moat("run", "-d", "--name", "x", "--runtime", runtime, "--", "sleep", "100").returncode == 0
        done = moat("exec", "x", *command)
    assert done.returncode == 0, done.stderr
    refused = json.loads(done.stdout)
    assert set(refused.values()) <= {1, 38}, refused  # EPERM; openat2 is not there at all
    assert refused.pop("openat2") == 38
    modes = {path.name: path.lstat() for path in place.iterdir()}
    assert [name for name, info in modes.items() if info.st_mode & (stat.S_ISUID | stat.S_ISGID)] == []
    assert modes["ordinary"].st_uid == 0, "else there would be nothing to fear"
    assert [stat.S_IMODE(modes[name].st_mode) for name in ("ordinary", "directory")] == [0o751, 0o1777]
