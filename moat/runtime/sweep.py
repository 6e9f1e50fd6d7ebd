"""Clearing up after runs that lost their supervisor, in a process of its own that nobody waits for.

    python -m moat.runtime.sweep [MOAT_HOME]

An engine that does not answer must not hold up the command that noticed.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sys
from pathlib import Path

from moat import errors
from moat.errors import MoatError
from moat.paths import Home, private_dir
from moat.runtime import known, records
from moat.runtime.engine_socket import EngineUnreachableError

# As in `launch`: this very moat, and nothing that a workspace could have put in the way.
_PROGRAM = (
    "import os, sys; os.chdir('/'); sys.path.append(sys.argv[1]); "
    "import moat.runtime.sweep as s; s.main(sys.argv[2:])"
)
_IN_BACKGROUND = ["/bin/sh", "-c", '"$0" "$@" &']  # an interpreter takes twenty times as long to leave
_log = logging.getLogger(__name__)


def begin(home: Home) -> None:
    """Start a sweep, which leaves this process, and return; what is in its way is the next one's affair."""
    nothing = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
    root = str(Path(errors.__file__).parent.parent)
    argv = [*_IN_BACKGROUND, sys.executable, "-P", "-c", _PROGRAM, root, str(home.root)]
    with contextlib.suppress(OSError):
        child = os.posix_spawn(argv[0], argv, os.environ, file_actions=nothing, setsid=True)
        os.waitpid(child, 0)


def sweep(home: Home) -> None:
    """Clear up after every dead run; another sweep at the same time does it instead."""
    with contextlib.ExitStack() as held:
        if not _alone(home, held):
            return
        dead = [run for run in records.read_all(home) if known.is_dead(home, run)]
        for record in dead:
            with contextlib.suppress(OSError):
                known.settle(home, record)
        silent: set[str] = set()  # runtimes whose engine does not answer: the next sweep tries again
        for record in dead:
            if record.runtime not in silent:
                try:
                    known.clear(home, record)
                except (MoatError, OSError) as error:
                    _log.info("leftovers of %s were not removed: %s", record.id, error)
                    if isinstance(error, (EngineUnreachableError, TimeoutError)):
                        silent.add(record.runtime)


def _alone(home: Home, held: contextlib.ExitStack) -> bool:
    private_dir(home.root)
    handle = os.open(home.root / "sweep.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    held.callback(os.close, handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main(argv: list[str]) -> None:
    sweep(Home(Path(argv[0])) if argv else Home.from_environment())


if __name__ == "__main__":
    main(sys.argv[1:])
