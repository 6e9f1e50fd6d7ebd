"""What a launcher that stands by (`standby`) is given to do: its plan and its descriptors."""

from __future__ import annotations

import contextlib
import dataclasses
import marshal
import math
import os
import re
import socket
import subprocess

from moat.dataclass import dataclass
from moat.errors import StartError
from moat.runtime import bwrap, handover
from moat.runtime.sandbox import HOST_ADDRESS, PROXY_PORT
from moat.runtime.standby import Standby
from moat.runtime.stdio import Stdio

_NPROC_PER_NAMESPACE = (5, 14)  # before, RLIMIT_NPROC counted the user's processes outside as well
_CAPTURED = (80, 443)

Listener = tuple[str, str, int, bool]  # kind, address, port, whether another listener shares the port


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the launcher does; sent in a memfd, with everything that it names."""

    parent: int  # the supervisor's pid
    command: list[str]
    environment: dict[str, str]  # of launcher, attendant and bubblewrap itself, not of the command
    drop_to: int | None  # run by root: the uid to become
    scratch: str  # run by root: covered by a private tmpfs that holds the staged mounts
    stage: list[dict[str, str | bool | int]]  # run by root: what to take, in the order of `scratch`/<index>
    rlimits: dict[str, int]  # for what no control group holds
    listeners: list[Listener]
    ingress: bool  # keep a process that makes sockets in the sandbox's network namespace


@dataclass(frozen=True, slots=True)
class Launch:
    """A launcher that has its plan. Writing a byte to `release` lets the command start."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    release: int


def listeners(host_ports: tuple[int, ...], captured: tuple[int, ...] = ()) -> list[Listener]:
    """In the order in which their descriptors come back: see `embedded._sockets`."""
    loopback, everywhere = "127.0.0.1", "0.0.0.0"  # noqa: S104 - of the sandbox's own network namespace
    result: list[Listener] = [("tcp", loopback, PROXY_PORT, False)]
    result += [("tcp", everywhere, port, port in host_ports) for port in _CAPTURED]
    result.append(("udp", loopback, 53, False))
    shared = {*_CAPTURED, *captured}
    result += [("tcp", HOST_ADDRESS, port, port in shared) for port in host_ports]
    result += [("tcp", everywhere, port, port in host_ports) for port in captured]
    return result


def rlimits(*, memory: int, pids: int, cpus: float = 0.0) -> dict[str, int]:
    """What to limit per process where there is no control group; processors are whole ones there."""
    numbers = re.match(r"(\d+)\.(\d+)", os.uname().release)
    kernel = tuple(int(part) for part in numbers.groups()) if numbers else (0, 0)
    limits = {"memory": memory}
    if kernel >= _NPROC_PER_NAMESPACE:
        limits["pids"] = pids
    if cpus:
        limits["cpu"] = math.ceil(cpus)
    return limits


def launch(
    ahead: Standby,
    plan: Plan,
    arguments: bwrap.Arguments,
    argv: tuple[str, ...],
    *,
    terminal: bool,
    stdio: Stdio,
) -> Launch:
    """Have it carry out `plan`, whose command is completed here. Closes `arguments`."""
    with contextlib.ExitStack() as undo:
        try:
            held, release = _gate()
            undo.callback(os.close, release)
            arguments.fds.append(held)
            words = arguments.data(b"".join(os.fsencode(word) + b"\0" for word in arguments.words))
            options = ["--args", str(words), "--block-fd", str(held), "--"]
            command = [*plan.command, *options, *_session(terminal=terminal), *argv]
            content = arguments.data(
                marshal.dumps(dataclasses.asdict(dataclasses.replace(plan, command=command)))
            )
            same = [(fd, fd) for fd in arguments.fds if fd != content]
            with contextlib.suppress(ConnectionError):  # it died, and whoever waits for its word is told so
                handover.send(
                    ahead.control,
                    [(content, content), *same, *((fd, number) for number, fd in enumerate(stdio.child))],
                )
        finally:
            arguments.close()
        undo.pop_all()
    stdio.started()
    return Launch(ahead.process, ahead.control, release)


def _gate() -> tuple[int, int]:
    """A pipe that the sandbox waits at: (its end, ours).

    Its end is opened for writing too. If the supervisor dies, the pipe then has a writer left and gives
    no end of file, which bubblewrap would take for the release.
    """
    read, write = os.pipe()
    try:
        return os.open(f"/proc/self/fd/{read}", os.O_RDWR | os.O_CLOEXEC), write
    except BaseException:
        os.close(write)
        raise
    finally:
        os.close(read)


def _session(*, terminal: bool) -> list[str]:
    """The command gets a session of its own inside, and there the terminal.

    Bubblewrap stays outside that session: ^C is for the command and must not end the sandbox.
    """
    path = bwrap.program("setsid", "/usr/bin:/bin:/usr/sbin:/sbin")
    if path is None:
        raise StartError("setsid is missing", hint="apt-get install util-linux")
    return [path, *(["-c"] if terminal else []), "--"]
