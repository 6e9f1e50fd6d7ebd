"""The gateway: one process for all runs of a MOAT_HOME, on loopback only.

`python -m moat.runtime.endpoints.gateway` reads one JSON message on stdin (see `spawn`), answers with its
port or with what is wrong, and leaves the caller's session. It belongs to no run: it ends by itself, some
minutes after the last run with endpoints has.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from moat.errors import MoatError
from moat.paths import Home, private_dir, write_private
from moat.runtime.endpoints import spawn
from moat.runtime.endpoints.ca import EndpointTLS
from moat.runtime.endpoints.routes import Routes
from moat.runtime.endpoints.server import Server
from moat.runtime.loop import keep_freed_memory, raise_limits, run_loop

_LOOK = 2.0  # seconds between two looks at whether anybody needs us
_BACKLOG = 256
_log = logging.getLogger("moat.gateway")


def main() -> None:
    message = json.loads(sys.stdin.buffer.read())
    if os.fork():
        os._exit(0)  # the caller waits for this one only
    os.setsid()
    os.umask(0o077)
    home = Home(Path(message["home"]))
    try:
        private_dir(home.endpoints)
        lock = _own(home)
        tls = EndpointTLS(home)
        port, listeners = listen(range(message["first"], message["last"] + 1))
        about = {"pid": os.getpid(), "port": port, "started_at": time.time()}
        write_private(home.endpoints / "gateway.json", json.dumps(about).encode())
        _log_to(home.endpoints / "gateway.log")
    except (MoatError, OSError) as error:
        _say(error=str(error), hint=error.hint if isinstance(error, MoatError) else None)
        os._exit(1)
    _say(port=port)
    _let_go()
    raise_limits()
    _log.info("listening on port %d of loopback", port)
    gateway = Gateway(home, tls, port, listeners, lock, frozenset(message["users"]))
    keep_freed_memory()
    run_loop(gateway.run(float(message["linger"])))


def _say(**message: Any) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def _let_go() -> None:
    """Of the pipes to whoever started us. stderr is the log by now."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    os.close(null)


def _own(home: Home) -> int:
    """The life sign. Raises MoatError when another gateway has it."""
    fd = os.open(spawn.lock_path(home), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise MoatError("another gateway of endpoints has just been started", hint="try again") from None
    return fd


def listen(ports: Iterable[int]) -> tuple[int, list[socket.socket]]:
    """Listen on the first port that is free on 127.0.0.1 and ::1. Raises MoatError when none is."""
    tried = []
    for port in ports:
        tried.append(port)
        try:
            return port, _both(port)
        except PermissionError:
            raise MoatError(
                f"port {port} may not be used by this user", hint="choose an endpoints.port of 1024 or more"
            ) from None
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    which = f"port {tried[0]} is" if len(tried) == 1 else f"ports {tried[0]} to {tried[-1]} are"
    raise MoatError(
        f"{which} in use on this machine, and the gateway of endpoints needs one",
        hint="choose another: endpoints.port in ~/.moat/config.yaml, or MOAT_ENDPOINT_PORT",
    )


def _both(port: int) -> list[socket.socket]:
    """IPv4 and, where there is any, IPv6: a browser may try either first."""
    made: list[socket.socket] = []
    try:
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
                made.append(sock)
                # Not SO_REUSEPORT: nobody may take the port beside us. This only ignores old connections.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((address, port))
                sock.listen(_BACKLOG)
            except OSError as error:
                if family == socket.AF_INET or error.errno in {errno.EADDRINUSE, errno.EACCES}:
                    raise
                _log.info("no IPv6 loopback: %s", error)
                made.pop().close()
    except BaseException:
        for sock in made:
            sock.close()
        raise
    return made


def _log_to(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.dup2(fd, 2)
    os.close(fd)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")


@dataclass(slots=True)
class Gateway:
    home: Home
    tls: EndpointTLS
    port: int
    listeners: list[socket.socket]
    lock: int  # descriptor of the life sign
    users: frozenset[int]  # whose programs may ask

    async def run(self, linger: float) -> None:
        """Serve until nobody has needed us for `linger` seconds."""
        routes = Routes(self.home)
        server = Server(self.home, routes, self.tls, self.port, self.users)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.watch.run)
            for sock in self.listeners:
                tasks.start_soon(server.serve, sock)
            await self._forgotten(routes, linger)
            while not self._retire(routes):
                await self._forgotten(routes, linger)
            tasks.cancel_scope.cancel()
        _log.info("nobody has endpoints any more")

    async def _forgotten(self, routes: Routes, linger: float) -> None:
        """Returns when no run has had endpoints for `linger` seconds, or our own directory is gone."""
        last = time.monotonic()
        while spawn.lock_path(self.home).exists() and time.monotonic() - last < linger:
            await anyio.sleep(_LOOK)
            if routes.alive():
                last = time.monotonic()

    def _retire(self, routes: Routes) -> bool:
        """Give up port and life sign in one step; False when a run has come after all.

        Whoever waits for the lock finds that there is no gateway, and that the port is free.
        """
        if not self.home.endpoints.exists():
            return True
        with spawn.changing(self.home):
            if routes.alive():
                return False
            (self.home.endpoints / "gateway.json").unlink(missing_ok=True)
            for sock in self.listeners:
                sock.shutdown(socket.SHUT_RDWR)
            os.close(self.lock)
        return True


if __name__ == "__main__":
    main()
