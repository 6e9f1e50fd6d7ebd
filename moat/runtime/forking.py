"""A supervisor as a fork of the command that starts it: what is imported already is not imported again.

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
from typing import IO, NoReturn

_TITLE = b"moat supervisor"


def possible(workspace: Path) -> bool:
    """Whether this process may be forked, and would import nothing from where an agent can write.

    Another thread may hold a lock that nobody in the fork would ever release.
    """
    if len(os.listdir("/proc/self/task")) > 1:
        return False
    places = (Path(entry).resolve() for entry in _search_path())
    return not any(place.is_relative_to(workspace) for place in places)


@contextlib.contextmanager
def forked(supervise: Callable[[], None]) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """A process in a session of its own that carries out `supervise`; what it writes to stdout and stderr.

    The process that ends with this block is only its parent: `supervise` outlives it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    answers, answering = os.pipe()
    complaints, complaining = os.pipe()
    parent = os.fork()
    if not parent:
        os.close(answers)
        os.close(complaints)
        _become(supervise, answering, complaining)
    os.close(answering)
    os.close(complaining)
    with open(answers, "rb", buffering=0) as told, open(complaints, "rb", buffering=0) as wrong:
        try:
            yield told, wrong
        finally:
            os.waitpid(parent, 0)


def _become(supervise: Callable[[], None], answering: int, complaining: int) -> NoReturn:
    status = 1
    try:
        os.setsid()
        if os.fork():
            os._exit(0)  # the caller waits for this one only
        os.setsid()
        _let_go(answering, complaining)
        supervise()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)  # nothing of the command's own end is to happen here


def _let_go(answering: int, complaining: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for ours, number in ((null, 0), (answering, 1), (complaining, 2)):
        os.dup2(ours, number)
        os.close(ours)
    for number in map(int, os.listdir("/proc/self/fd")):
        # Not closed: an object of the command that goes away later would close somebody else's.
        if number > 2:
            with contextlib.suppress(OSError):  # the directory that was just listed
                os.fstat(number)
                os.dup2(0, number, inheritable=False)
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
    import ctypes

    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    if end - start > len(title):
        ctypes.memmove(start, title.ljust(end - start, b"\0"), end - start)
