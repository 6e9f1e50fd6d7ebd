"""The processes of a sandbox, seen from the host: who there is, and holding all of them still.

A sandbox's first process is the first of a process namespace, so that every process in it stays its
descendant. All this is sampling: what is born and gone between two looks is not seen.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

from moat.dataclass import dataclass
from moat.errors import MoatError

_PATIENCE = 5.0  # seconds in which all processes must have stopped
_MOST = 20_000  # processes that are looked at
_STOPPED = frozenset("TtZX")
_VFORK = frozenset({"kernel_clone", "_do_fork", "do_fork"})  # proc(5), `wchan`; by the kernel's version


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    born: str  # in clock ticks since the machine started; with the pid it names one process
    state: str


def tree(first: int) -> list[Process]:
    """The process `first` and all its descendants, parents before their children."""
    found: list[Process] = []
    waiting = [first]
    while waiting and len(found) < _MOST:
        pid = waiting.pop(0)
        process = look(pid)
        if process is not None:
            found.append(process)
            waiting.extend(_children(pid))
    return found


def look(pid: int) -> Process | None:
    """None: there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return Process(pid, fields[19].decode(), fields[0].decode())


def arguments(pid: int, most: int = 4096) -> list[str]:
    """The command line of a process, cut off after `most` bytes; empty when it cannot be read."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return os.fsdecode(file.read(most)).rstrip("\0").split("\0")
    return []


def _children(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                yield from map(int, file.read().split())


def stop(first: int) -> list[Process]:
    """Stop `first` and all below it; returns what `go_on` wants.

    Parents first: a shell must not see its job stop and take the terminal back.
    Raises MoatError when something does not stop; then everything goes on again.
    """
    stopped: dict[tuple[int, str], Process] = {}
    deadline = time.monotonic() + _PATIENCE
    while True:
        awake = [process for process in tree(first) if process.state not in _STOPPED]
        if all((process.pid, process.born) in stopped and _waits_for_its_child(process) for process in awake):
            return list(stopped.values())
        if time.monotonic() > deadline:
            go_on(list(stopped.values()))
            raise MoatError(f"{len(awake)} processes of the sandbox do not stop")
        for process in awake:
            if _signal(process, signal.SIGSTOP):
                stopped.setdefault((process.pid, process.born), process)
        time.sleep(0.002)


def _waits_for_its_child(process: Process) -> bool:
    """It has called vfork(2), and its child was stopped before it became another program.

    Such a thread cannot stop, and needs not: it does nothing before the child goes on. All others must have.
    """
    with contextlib.suppress(OSError):
        threads = f"/proc/{process.pid}/task"
        return all(_is_held(f"{threads}/{number}") for number in os.listdir(threads))
    return False


def _is_held(thread: str) -> bool:
    with open(f"{thread}/stat", "rb") as file:
        state = file.read().rpartition(b")")[2].split()[0].decode()
    if state != "D":
        return state in _STOPPED
    with open(f"{thread}/wchan", encoding="ascii") as file:
        return file.read() in _VFORK


def go_on(stopped: list[Process]) -> None:
    """Continue what `stop` has stopped, children first. What somebody else had stopped stays so."""
    for process in reversed(stopped):
        _signal(process, signal.SIGCONT)


def _signal(process: Process, number: int) -> bool:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        handle = os.pidfd_open(process.pid)
        try:
            now = look(process.pid)
            if now is not None and now.born == process.born:  # the number may have passed on
                signal.pidfd_send_signal(handle, number)
                return True
        finally:
            os.close(handle)
    return False
