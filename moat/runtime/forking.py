"""A supervisor as a fork of the command that starts it: what is imported already is not imported again.

The fork is made early: it imports what a supervisor needs while the command finds out what to ask of it.

A fork has all that the command had, so it lets go of everything first: descriptors, terminal, handlers of
signals, directories that modules are looked for in, and the words that `ps` shows.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple, NoReturn

from moat import surroundings

_TITLE = b"moat supervisor"


class Fork(NamedTuple):
    """The other ends of its standard streams."""

    stdin: IO[bytes]
    stdout: IO[bytes]
    stderr: IO[bytes]


def alone() -> bool:
    """Whether this process may be forked: another thread may hold a lock that nobody would ever release."""
    return len(os.listdir("/proc/self/task")) == 1


def imports_from(*places: Path) -> bool:
    """Whether this process, and a fork of it, would import modules from where an agent can write."""
    return any(surroundings.lies_in(entry, places) for entry in _search_path())


@contextlib.contextmanager
def forked(serve: Callable[[], None]) -> Iterator[Fork]:
    """A process in a session of its own that carries out `serve`, with pipes for its standard streams.

    The process that ends with this block is only its parent: `serve` outlives it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    ordered, orders = os.pipe()
    answers, answering = os.pipe()
    complaints, complaining = os.pipe()
    parent = os.fork()
    if not parent:
        for fd in (orders, answers, complaints):
            os.close(fd)
        _become(serve, ordered, answering, complaining)
    for fd in (ordered, answering, complaining):
        os.close(fd)
    with (
        open(orders, "wb", buffering=0) as stdin,
        open(answers, "rb", buffering=0) as stdout,
        open(complaints, "rb", buffering=0) as stderr,
    ):
        try:
            yield Fork(stdin, stdout, stderr)
        finally:
            os.waitpid(parent, 0)


def _become(serve: Callable[[], None], *streams: int) -> NoReturn:
    status = 1
    try:
        os.setsid()
        if os.fork():
            os._exit(0)  # the caller waits for this one only
        os.setsid()
        _let_go(*streams)
        serve()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)  # nothing of the command's own end is to happen here


def _let_go(*streams: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for number, ours in enumerate(streams):
        os.dup2(ours, number)
        os.close(ours)
    for number in map(int, os.listdir("/proc/self/fd")):
        # Not closed: an object of the command that goes away later would close somebody else's.
        if number > 2:
            with contextlib.suppress(OSError):  # the directory that was just listed
                os.fstat(number)
                os.dup2(null, number, inheritable=False)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir("/")
    sys.path[:] = _search_path()
    _call_it(_TITLE)


def _search_path() -> list[str]:
    """Without the directory of the program, which for `python -m moat` is the current one."""
    return sys.path[:] if sys.flags.safe_path else sys.path[1:]


def _call_it(title: bytes) -> None:
    """What `ps` shows: the command's words may be private, and are the command's (proc(5), `arg_start`)."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    if end - start > len(title):
        with open("/proc/self/mem", "r+b", buffering=0) as memory:  # `ctypes` takes 5 ms to import
            memory.seek(start)
            memory.write(title.ljust(end - start, b"\0"))
