"""Sandboxes as /proc shows them: the command of one, and what a killed supervisor left behind."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

MARK = "MOAT_SANDBOX"  # in the environment of bubblewrap and the attendant, not of the command: the run's id


def open_command(init: int) -> int | None:
    """A pidfd of the command: pid 2 of the sandbox whose pid 1 is `init`; None when there is none."""
    for pid in _pids():
        if _is_second_of(pid, init):
            with contextlib.suppress(ProcessLookupError):
                handle = os.pidfd_open(pid)
                if _is_second_of(pid, init):  # the number may have passed on in between
                    return handle
                os.close(handle)
    return None


def kill_marked(run_id: str) -> None:
    """Kill every process of ours that carries the mark of `run_id`, and with bubblewrap its sandbox."""
    mark = f"{MARK}={run_id}".encode()
    for pid in _pids():
        if pid != os.getpid() and _has_mark(pid, mark):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                handle = os.pidfd_open(pid)
                try:
                    if _has_mark(pid, mark):
                        signal.pidfd_send_signal(handle, signal.SIGKILL)
                finally:
                    os.close(handle)


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _is_second_of(pid: int, init: int) -> bool:
    fields = {}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            name, _, value = line.partition(":")
            fields[name] = value.split()
    return fields.get("PPid") == [str(init)] and fields["NSpid"][-1] == "2"


def _has_mark(pid: int, mark: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:  # `Path` takes twice as long
            data = file.read()
        return mark in data and mark in data.split(b"\0")
    except OSError:
        return False
