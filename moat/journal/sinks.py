"""Second places that entries are copied to: a file, syslog, a command. All of it blocks and raises OSError.

Each `send` gets whole lines and returns when they are out of our hands. What failed is sent again as a
whole, so a second place may have an entry twice; its number tells.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from moat.journal.lines import parse_line

_PATIENCE = 10.0  # seconds for one write, one connection
_AUTHPRIV_INFO = 10 * 8 + 6  # facility and severity of every entry
_STARTS = 5  # of a command…
_PER = 60.0  # …in so many seconds
_FAREWELL = 2.0  # seconds for a command to end after its stdin has


class Sink(Protocol):
    @property
    def name(self) -> str:
        """As the user wrote it."""
        ...

    def send(self, lines: Sequence[bytes]) -> None: ...

    def close(self) -> None: ...


class FileSink:
    """Appends to a file that many runs may share, and syncs it."""

    def __init__(self, path: Path) -> None:
        self.name = f"file: {path}"
        self._path = path
        self._fd = -1
        self._torn = False

    def send(self, lines: Sequence[bytes]) -> None:
        fd = self._open()
        data = (b"\n" if self._torn else b"") + b"".join(line + b"\n" for line in lines)
        self._torn = True  # until all is written: a full disk leaves half a line, which must stand alone
        written = os.write(fd, data)
        if written < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._torn = False
        os.fdatasync(fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> int:
        """The file that has the name now: log rotation may have moved the one from before."""
        if self._fd >= 0:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(self._path), os.fstat(self._fd)):
                    return self._fd
            self.close()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
        self._fd = os.open(self._path, flags, 0o600)
        return self._fd


class SyslogSink:
    """RFC 5424 messages to the machine's own syslog, or to one by UDP or TCP (octet counting, RFC 6587)."""

    def __init__(self, target: str, local: str = "/dev/log") -> None:
        """target: `local`, `udp://host:port`, `tcp://host:port`."""
        self.name = f"syslog: {target}"
        self._scheme, _, place = target.partition("://")
        host, _, port = place.rpartition(":")
        self._address = (host.strip("[]"), int(port or 0))
        self._local = local
        self._socket: socket.socket | None = None

    def send(self, lines: Sequence[bytes]) -> None:
        try:
            connected = self._connected()
            for line in lines:
                message = syslog_message(line)
                if self._scheme == "tcp":
                    connected.sendall(b"%d %s" % (len(message), message))
                else:
                    connected.send(message)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connected(self) -> socket.socket:
        if self._socket is not None and self._scheme == "tcp" and _peer_left(self._socket):
            self.close()
        if self._socket is None:
            if self._scheme == "tcp":
                self._socket = socket.create_connection(self._address, _PATIENCE)
            elif self._scheme == "udp":
                family, kind, protocol, _, address = socket.getaddrinfo(
                    *self._address, type=socket.SOCK_DGRAM
                )[0]
                self._socket = socket.socket(family, kind, protocol)
                self._socket.connect(address)
            else:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.connect(self._local)
            self._socket.settimeout(_PATIENCE)
        return self._socket


def _peer_left(connected: socket.socket) -> bool:
    return _ready(connected.fileno(), select.POLLIN, 0.0) and connected.recv(1, socket.MSG_PEEK) == b""


def _ready(fd: int, event: int, seconds: float) -> bool:
    """Whether `fd` is ready in time. Not select(2): a supervisor has more than 1024 descriptors."""
    poll = select.poll()
    poll.register(fd, event)
    return bool(poll.poll(seconds * 1000))


def syslog_message(line: bytes) -> bytes:
    """The entry as one RFC 5424 message; its event is the message id."""
    found = parse_line(line) or {}
    event = str(found.get("event", "")).encode("ascii", "replace")[:32] or b"-"
    at = str(found.get("at", "-")).encode("ascii", "replace")
    host = socket.gethostname().encode("ascii", "replace")[:255] or b"-"
    return b"<%d>1 %s %s moat %d %s - %s" % (_AUTHPRIV_INFO, at, host, os.getpid(), event, line)


class CommandSink:
    """A program that reads entries on its stdin. One that ends is started again, within bounds."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.name = f"command: {' '.join(argv)}"
        self._argv = tuple(argv)
        self._process: subprocess.Popen[bytes] | None = None
        self._starts: list[float] = []

    def send(self, lines: Sequence[bytes]) -> None:
        stdin = self._running()
        view = memoryview(b"".join(line + b"\n" for line in lines))
        try:
            while view:
                if not _ready(stdin, select.POLLOUT, _PATIENCE):
                    raise TimeoutError(errno.ETIMEDOUT, "it does not read")
                view = view[os.write(stdin, view) :]
        except OSError:
            self._end(0.0)
            raise

    def close(self) -> None:
        self._end(_FAREWELL)

    def _running(self) -> int:
        """The descriptor of its stdin."""
        if self._process is not None and self._process.poll() is not None:
            self._end(0.0)
        if self._process is None:
            now = time.monotonic()
            self._starts = [start for start in self._starts if start > now - _PER]
            if len(self._starts) >= _STARTS:
                raise OSError(errno.EAGAIN, f"it ended {_STARTS} times in a minute")
            self._starts.append(now)
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                # Neither our passphrase nor where we keep things is its business.
                env={name: value for name, value in os.environ.items() if not name.startswith("MOAT_")},
                start_new_session=True,
            )
            assert self._process.stdin is not None
            os.set_blocking(self._process.stdin.fileno(), False)
        assert self._process.stdin is not None
        return self._process.stdin.fileno()

    def _end(self, patience: float) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
