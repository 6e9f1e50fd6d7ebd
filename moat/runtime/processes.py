"""The processes of a sandbox, seen from the host: who there is, and holding all of them still.

A sandbox's first process is the first of a process namespace, so that every process in it stays its
descendant. All this is sampling: what is born and gone between two looks is not seen. Who does not want to be
held still passes himself on from one short-lived process to the next, or lets his first thread end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator

from moat.dataclass import dataclass
from moat.errors import MoatError

_PATIENCE = 5.0  # seconds in which all processes must have stopped
_MOST = 20_000  # processes that are looked at
_DEAD = frozenset("ZX")
_STOPPED = frozenset("Tt") | _DEAD
_VFORK = frozenset({"kernel_clone", "_do_fork", "do_fork"})  # proc(5), `wchan`; by the kernel's version


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    born: str  # in clock ticks since the machine started; with the pid it names one process
    state: str  # of its first thread
    threads: int


def tree(first: int) -> list[Process]:
    """The process `first` and all its descendants, parents before their children."""
    return _seen(first)[0]


def _seen(first: int) -> tuple[list[Process], bool]:
    """The tree, and whether all that was listed was still there: who has gone may have had children."""
    found: list[Process] = []
    waiting, whole = [first], True
    while waiting and len(found) < _MOST:
        pid = waiting.pop(0)
        process = look(pid)
        if process is None:
            whole = False
        else:
            found.append(process)
            waiting.extend(_children(pid))
    return found, whole


def look(pid: int) -> Process | None:
    """None: there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return Process(pid, fields[19].decode(), fields[0].decode(), int(fields[17]))


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

    Parents first: a shell must not see its job stop and take the terminal back. It is done when two looks in
    a row find the same processes, and in the second nothing runs.
    Raises MoatError when something does not stop; then everything goes on again.
    """
    stopped: dict[tuple[int, str], Process] = {}
    before: set[tuple[int, str, bool]] = set()
    deadline = time.monotonic() + _PATIENCE
    while True:
        found, whole = _seen(first)
        awake = [process for process in found if not _rests(process, _is_stopped)]
        held = all((each.pid, each.born) in stopped and _rests(each, _is_held) for each in awake)
        now = {(each.pid, each.born, each.state in _DEAD) for each in found}
        if whole and held and now == before:
            return list(stopped.values())
        if time.monotonic() > deadline:
            go_on(list(stopped.values()))
            raise MoatError(f"{len(awake)} processes of the sandbox do not stop")
        before = now
        for process in awake:
            if _signal(process, signal.SIGSTOP):
                stopped.setdefault((process.pid, process.born), process)
        time.sleep(0.002)


def _rests(process: Process, thread_rests: Callable[[str], bool]) -> bool:
    """Whether all its threads do: the first can have ended, or be held by a debugger, while others run."""
    if process.threads < 2 and process.state in _STOPPED:
        return True
    with contextlib.suppress(OSError):
        threads = f"/proc/{process.pid}/task"
        return all(thread_rests(f"{threads}/{number}") for number in os.listdir(threads))
    return False


def _is_stopped(thread: str) -> bool:
    return _state(thread) in _STOPPED


def _is_held(thread: str) -> bool:
    """Or it has called vfork(2), and its child was stopped before it became another program.

    Such a thread cannot stop, and needs not: it does nothing before the child goes on.
    """
    state = _state(thread)
    if state != "D":
        return state in _STOPPED
    with open(f"{thread}/wchan", encoding="ascii") as file:
        return file.read() in _VFORK


def _state(thread: str) -> str:
    with open(f"{thread}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0].decode()


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
