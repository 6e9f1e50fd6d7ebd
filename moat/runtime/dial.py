"""The way into a sandbox: a stream to a server on its loopback, asked for by the run and by nobody else.

embedded  a process of the host that lives in the sandbox's network namespace, and only there, makes
          sockets and hands them out (`namespace.hand_out`); the run connects them itself
docker    the forwarder in the container is told over one connection to connect a port to a socket that
          the run listens on for this purpose and this once

What the sandbox can reach of this is a socket on which it may be asked to connect something to itself. It
can refuse, lie or answer from elsewhere inside; nothing of the host is opened for it. In a container the
forwarder does not pass descriptors: who shares a file description with the run could make it block.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path

import anyio

from moat.proxy.accepting import next_of

_SECONDS = 5.0  # to connect on a loopback interface; a full backlog takes longer
_LOOPBACKS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
_CONTROL = "dial.sock"  # in the directory: where the forwarder connects at its start
_ANSWER = 64  # bytes of the forwarder's word on an attempt


class NamespaceDialler:
    """Connects sockets that were made in the sandbox's network namespace. Owns its end of the pair."""

    def __init__(self, maker: socket.socket) -> None:
        maker.setblocking(False)
        self._maker = maker
        self._turn = anyio.Lock()

    async def dial(self, port: int) -> socket.socket:
        """Raises OSError."""
        failure = _error(errno.ECONNREFUSED)
        for family, address in _LOOPBACKS:
            try:
                return await self._connected(family, address, port)
            except ConnectionRefusedError as error:
                failure = error
            except OSError as error:
                if family == socket.AF_INET:  # a sandbox without IPv6 has nobody listening there either
                    raise
                if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ENETUNREACH}:
                    raise
        raise failure

    async def _connected(self, family: socket.AddressFamily, address: str, port: int) -> socket.socket:
        sock = await self._fresh(family)
        try:
            with anyio.fail_after(_SECONDS):
                with contextlib.suppress(BlockingIOError):
                    sock.connect((address, port))
                await anyio.wait_writable(sock)
            _check(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        except BaseException:
            sock.close()
            raise
        return sock

    async def _fresh(self, family: socket.AddressFamily) -> socket.socket:
        """A socket in the sandbox's namespace, in the order in which they are asked for."""
        async with self._turn:
            # Shielded: an answer must not be left over for the next one who asks.
            with anyio.CancelScope(shield=True), anyio.fail_after(_SECONDS):
                self._maker.send(b"6" if family == socket.AF_INET6 else b"4")
                await anyio.wait_readable(self._maker)
                word, fds, _, _ = socket.recv_fds(self._maker, 16, 1, socket.MSG_CMSG_CLOEXEC)
        if fds:
            sock = socket.socket(fileno=fds[0])
            sock.setblocking(False)
            return sock
        raise _error(int(word) if word else errno.EPIPE)  # the end of the stream: the sandbox is gone

    def close(self) -> None:
        self._maker.close()


class ForwarderDialler:
    """Asks the forwarder in a container. `directory` is bound into it read-only: only we make names there."""

    def __init__(self, directory: Path, uid: int) -> None:
        """Listens from here on; the forwarder connects before the command starts."""
        self._directory = directory
        self._uid = uid
        self._listener: socket.socket | None = _listen(directory / _CONTROL, uid)
        self._control: socket.socket | None = None
        self._turn = anyio.Lock()
        self._count = 0

    async def dial(self, port: int) -> socket.socket:
        """Raises OSError."""
        self._count += 1
        name = f"in-{self._count}.sock"
        path = self._directory / name
        with _listen(path, self._uid) as listener:
            try:
                with anyio.fail_after(_SECONDS):
                    await self._ask(f"{port} {name}\n".encode())
                    sock = await next_of(listener)
                    return await _spoken(sock)
            finally:
                path.unlink(missing_ok=True)

    async def _ask(self, line: bytes) -> None:
        async with self._turn:
            if self._control is None:
                if self._listener is None:
                    raise ConnectionResetError(errno.ECONNRESET, "the sandbox is gone")
                # The first in the queue is the forwarder's: the command did not run yet.
                self._control = await next_of(self._listener)
                self._listener.close()
                self._listener = None
                (self._directory / _CONTROL).unlink(missing_ok=True)
            # A line is far below what the socket takes; a forwarder that does not read loses its own way in.
            self._control.send(line)

    def close(self) -> None:
        for sock in (self._listener, self._control):
            if sock is not None:
                sock.close()
        self._listener = self._control = None


def _listen(path: Path, uid: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    mask = os.umask(0o177)
    try:
        sock.bind(str(path))
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(mask)
    if uid != os.geteuid():
        os.chown(path, uid, -1, follow_symlinks=False)
    sock.listen(1)
    return sock


async def _spoken(sock: socket.socket) -> socket.socket:
    """The stream behind the forwarder's word: `+` and then the server's bytes, or an error number."""
    word = b""
    try:
        while not word.endswith(b"\n") and len(word) < _ANSWER:
            await anyio.wait_readable(sock)
            piece = sock.recv(1)  # not a byte of the server's may be taken
            if not piece:
                break
            word += piece
        if word != b"+\n":
            raise _error((int(word) if word.strip().isdigit() else 0) or errno.ECONNRESET)  # noqa: TRY301 - closed below
    except BaseException:
        sock.close()
        raise
    return sock


def _check(code: int) -> None:
    if code:
        raise _error(code)


def _error(code: int) -> OSError:
    """As the subclass that the number stands for, e.g. ConnectionRefusedError."""
    return OSError(code, os.strerror(code))
