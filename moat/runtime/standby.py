"""A launcher (`namespace.main`) that is there before its plan is.

An interpreter takes as long to come up as all the rest of making a sandbox, and the kernel as long again to
move a process into control groups.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import socket
import subprocess
import sys

import moat
from moat.dataclass import dataclass
from moat.runtime.cgroup import Group, make
from moat.runtime.procfs import MARK

# The packages by their places only: their own `__init__` import what the launcher does not need.
_BOOTSTRAP = """\
import sys
for name, path in (("moat", sys.argv[2]), ("moat.runtime", sys.argv[2] + "/runtime")):
    sys.modules[name] = type(sys)(name)
    sys.modules[name].__path__ = [path]
from moat.runtime.{} import main
main(int(sys.argv[1]))
"""
_PYTHON_NEEDS = ("LD_LIBRARY_PATH",)  # an interpreter outside the system's directories may be linked so
_END_DEADLINE = 5.0  # seconds; takes a thousandth of one


@dataclass(frozen=True, slots=True)
class Standby:
    """A launcher that waits for its plan in the control groups of its run, until `control` is closed."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    group: Group

    def dismiss(self) -> None:
        """Returns once launcher and attendant have ended. The groups are still there."""
        _end(self.process, self.control)


def bootstrap(module: str) -> str:
    """A program that calls `main` of this module of the runtime with its first argument, a descriptor."""
    return _BOOTSTRAP.format(module)


def environment(run_id: str) -> dict[str, str]:
    return {MARK: run_id}


def stand_by(run_id: str, *, memory: int, pids: int, cpus: float = 0.0) -> Standby:
    """Start a launcher in control groups with these limits, as far as they can be had here.

    The kernel ends the sandbox with the thread that calls this.
    """
    process, control = _started(run_id)
    try:
        group = make(run_id, memory=memory, pids=pids, cpus=cpus)  # while the interpreter comes up
        with contextlib.suppress(ConnectionError):  # it died, and whoever sends the plan is told so
            control.send(marshal.dumps({what: str(path) for what, path in group.directories.items()}))
    except BaseException:
        _end(process, control)
        raise
    return Standby(process, control, group)


def _started(run_id: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        try:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    "-c",
                    bootstrap("namespace"),
                    str(theirs.fileno()),
                    moat.__path__[0],
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=environment(run_id)
                | {name: os.environ[name] for name in _PYTHON_NEEDS if name in os.environ},
                cwd="/",
                start_new_session=True,  # ^C at the supervisor's terminal is not for the sandbox
            )
        except BaseException:
            ours.close()
            raise
    return process, ours


def _end(process: subprocess.Popen[bytes], control: socket.socket) -> None:
    process.kill()
    process.wait()
    with control, contextlib.suppress(OSError):  # the attendant had the launcher to tell it what to do
        control.settimeout(_END_DEADLINE)
        while control.recv(4096):
            pass
