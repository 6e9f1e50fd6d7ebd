"""The process that owns one run and outlives the terminal that started it.

It comes from `launch`: a fork (`obey`) or a program (`main`) that reads one JSON message on stdin.
It says on stdout what it does until the run is ready, and then has no connection to anybody but the run's
control socket. SIGTERM stops the run properly.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import json
import logging
import os
import signal
import threading
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from moat.errors import MoatError
from moat.importing import uncollected
from moat.paths import Home
from moat.proxy.tls import ignore_names_that_are_none
from moat.runtime import warden
from moat.runtime.loop import keep_freed_memory, raise_limits, run_loop
from moat.runtime.request import RunRequest
from moat.runtime.run import Run, hosted

_MOMENT = 0.25  # seconds
_log = logging.getLogger("moat.supervisor")


class Starter:
    """The pipe to whoever asked for the run. It may break at any time: the run goes on."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def say(self, **message: Any) -> None:
        try:
            os.write(self._fd, json.dumps(message).encode() + b"\n")
        except OSError:
            _log.debug("nobody listens any more")

    def progress(self, text: str) -> None:
        self.say(progress=text)

    def error(self, error: BaseException) -> None:
        text, hint = _reason(error)
        self.say(error={"kind": type(error).__name__, "message": text, "hint": hint})

    def goodbye(self) -> None:
        os.close(self._fd)


def _reason(error: BaseException) -> tuple[str, str | None]:
    """Why a run does not begin, and what helps."""
    if isinstance(error, MoatError):
        return str(error), error.hint
    if isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}:
        return "a run needs more open files than it may have here", "ulimit -n 4096"
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS}:
        where = f" ({error.filename})" if error.filename else ""
        reason = f"what a run needs cannot be written: {error.strerror}{where}"
        return reason, "free space where Moat keeps its runs (`moat clean` removes ended ones)"
    return str(error) or type(error).__name__, None


Orders = tuple[Home, RunRequest, bytes]


def main() -> None:
    orders = _orders()
    if os.fork():
        os._exit(0)  # the caller waits for this one only
    os.setsid()
    if orders:
        _supervise(*orders)


def obey() -> None:
    """Own the run that is asked for, if one is, until it has ended. The process is a session of its own."""
    if orders := _orders():
        _supervise(*orders)


def _orders() -> Orders | None:
    """None: whoever made this process had no use for it, or died."""
    with open(0, "rb", closefd=False) as stdin:
        data = stdin.read()
    if not data:
        return None
    message = json.loads(data)
    os.environ.clear()
    os.environ.update(message["environ"])
    return (
        Home(Path(message["home"])),
        RunRequest.from_json(message["request"]),
        base64.b64decode(message["handoff"]),
    )


def _supervise(home: Home, request: RunRequest, handoff: bytes) -> None:
    os.umask(0o077)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    warden.appoint(home, _let_go_of_the_terminal)
    starter = Starter(os.dup(1))
    unwanted = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: unwanted.set())  # whoever knows the number may send it
    starter.say(pid=os.getpid())
    _let_go_of_the_terminal()
    raise_limits()
    try:
        run_loop(_own(home, request, handoff, starter, unwanted))
    except MoatError as error:
        _log.info("ended: %s", error)
    except BaseException:
        _log.exception("the supervisor failed")
        raise


def _let_go_of_the_terminal() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


async def _own(
    home: Home, request: RunRequest, handoff: bytes, starter: Starter, unwanted: threading.Event
) -> None:
    """unwanted: SIGTERM came before there was a run that could be stopped."""
    ready = False
    making = contextlib.ExitStack()
    making.enter_context(uncollected())  # parts, keys and the sandbox bring half of all imports
    try:
        run = Run(request, home)
        _log_to(home.run(run.id) / "supervisor.log")
        loop, stop = asyncio.get_running_loop(), partial(run.ask_to_stop, by="SIGTERM")
        loop.add_signal_handler(signal.SIGTERM, stop)
        if unwanted.is_set():
            loop.call_soon(stop)
        async with hosted(run, handoff, starter.progress):
            if not request.hold:
                await run.started()
            starter.say(ready={"id": run.id, "name": run.name, "socket": run.record.socket})
            starter.goodbye()
            ready = True
            making.close()
            with anyio.move_on_after(_MOMENT) as moment:
                await run.ended()
            if moment.cancelled_caught:
                with contextlib.suppress(OSError, ImportError):  # no descriptor is left to import with
                    keep_freed_memory()  # imports `ctypes`, which a run that is over in a moment does without
                await run.ended()
    except Exception as error:
        if not ready:
            starter.error(error)
        raise


def _log_to(path: Path) -> None:
    """From here on stderr and the log are a file of the run: no secret is ever formatted into it."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.dup2(fd, 2)
    os.close(fd)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    ignore_names_that_are_none()
