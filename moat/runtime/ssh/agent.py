"""The SSH agent in the sandbox: a socket, one task for each connection, everything on the journal.

Whoever is in the sandbox may be hostile: sizes, numbers and times are bounded, a refusal costs a moment, and
a mistake in one connection ends that one.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import anyio
import anyio.to_thread
from anyio.abc import SocketStream, UNIXSocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from moat.journal import Journal
from moat.proxy.accepting import accept
from moat.runtime.ssh import messages, signing
from moat.runtime.ssh.messages import FAILURE, SIGN_RESPONSE, SUCCESS, answer
from moat.runtime.ssh.rules import Approval, RefusedError, Rules
from moat.sshwire import Fields, WireError, fingerprint, string
from moat.vault.ssh import SshGrant

_CONNECTIONS = 32  # at one time; a parallel `git fetch` of many submodules has one each
_MESSAGES = 512  # on one connection
_MESSAGE = 32 * 1024  # bytes; a login with the largest RSA or certificate keys is a fraction of it
_IDLE_SECONDS = 300.0  # between messages: while the server thinks about a key
_WRITE_SECONDS = 30.0
_REFUSAL_SECONDS = 0.05  # what a refusal costs, so that nobody fills the journal at full speed
_log = logging.getLogger(__name__)


class Signer(Protocol):
    async def __call__(self, grant: SshGrant, request: messages.SignRequest) -> bytes:
        """The signature. Raises SigningError."""
        ...


class Agent:
    """Serves the sandbox's agent socket."""

    def __init__(
        self,
        *,
        rules: Callable[[], Rules],
        revoked: Callable[[SshGrant], bool],
        journal: Journal,
        sign: Signer = signing.sign,
    ) -> None:
        """`rules` makes those of a connection; `revoked` is asked in a thread before each signature."""
        self._rules = rules
        self._revoked = revoked
        self._journal = journal
        self._sign = sign
        self._slots = anyio.Semaphore(_CONNECTIONS)

    async def serve(self, sock: socket.socket) -> None:
        """Serve a listening unix socket (owned from here on) until cancelled."""
        with sock:
            async with anyio.create_task_group() as connections:
                await accept(
                    sock, self._slots, lambda accepted: connections.start_soon(self._connection, accepted)
                )

    async def _connection(self, accepted: socket.socket) -> None:
        try:
            async with await UNIXSocketStream.from_socket(accepted) as stream:
                await Connection(self._rules(), stream, self._revoked, self._journal, self._sign).converse()
        except (OSError, anyio.BrokenResourceError, anyio.EndOfStream, anyio.IncompleteRead, TimeoutError):
            pass  # the client has gone, or is not one
        except Exception:  # a mistake of ours must end one connection, not the run
            _log.exception("a connection of the SSH agent ended by an error in moat")
        finally:
            self._slots.release()


class Connection:
    """One client, from its first message to its last."""

    def __init__(
        self,
        rules: Rules,
        stream: SocketStream,
        revoked: Callable[[SshGrant], bool],
        journal: Journal,
        sign: Signer,
    ) -> None:
        self._rules = rules
        self._stream = stream
        self._revoked = revoked
        self._journal = journal
        self._sign = sign

    async def converse(self) -> None:
        """Returns when the client has said enough. Raises what a broken connection raises."""
        source = BufferedByteReceiveStream(self._stream)
        for _ in range(_MESSAGES):
            try:
                with anyio.fail_after(_IDLE_SECONDS):
                    payload = await signing.read_message(source, _MESSAGE)
                reply = await self._answer(payload)
            except WireError as error:
                await self._refuse(RefusedError("malformed", str(error)))
                return  # nobody knows where the next message begins
            with anyio.fail_after(_WRITE_SECONDS):
                await self._stream.send(reply)

    async def _answer(self, payload: bytes) -> bytes:
        try:
            return await self._do(Fields(payload))
        except RefusedError as error:
            return await self._refuse(error)

    async def _do(self, fields: Fields) -> bytes:
        kind, name = fields.byte(), ""
        if kind == messages.REQUEST_IDENTITIES:
            fields.end()
            return self._list()
        if kind == messages.SIGN_REQUEST:
            return await self._signature(messages.read_sign_request(fields))
        if kind == messages.EXTENSION and (name := fields.text()[:80]) == messages.SESSION_BIND:
            return self._bind(messages.read_session_bind(fields))
        what = " ".join(filter(None, (messages.NAMES.get(kind, f"message {kind}"), name)))
        raise RefusedError("message", f"{what} is not for a sandbox")

    def _list(self) -> bytes:
        identities = self._rules.identities()
        keys = [fingerprint(identity.key) for identity in identities]
        self._journal.often("ssh.list", hosts=self._rules.hosts, keys=keys)
        return messages.identities_answer(identities)

    def _bind(self, bind: messages.SessionBind) -> bytes:
        self._rules.bind(bind)
        key = fingerprint(bind.host_key)
        self._journal.often("ssh.bind", hosts=self._rules.hosts, host_key=key)
        return answer(SUCCESS)

    async def _signature(self, request: messages.SignRequest) -> bytes:
        key = fingerprint(request.key)
        try:
            approval = await self._approval(request)
            signature = await self._sign(approval.grant, request)
        except RefusedError as error:
            return await self._refuse(error, key=key)
        except signing.SigningError as error:
            return await self._refuse(RefusedError("signer", str(error)), key=key)
        host, user = approval.grant.host, approval.login.user[:100]
        if not self._journal.record("ssh.sign", hosts=(host,), key=key, user=user):
            return answer(FAILURE)  # what is not recorded does not happen
        return answer(SIGN_RESPONSE, string(signature))

    async def _approval(self, request: messages.SignRequest) -> Approval:
        approval = self._rules.judge(request)
        if await anyio.to_thread.run_sync(self._revoked, approval.grant):
            raise RefusedError("revoked", f"the grant {approval.grant.name} is gone")
        return approval

    async def _refuse(self, error: RefusedError, *, key: str = "") -> bytes:
        hosts, reason = self._rules.hosts, str(error)
        self._journal.often("ssh.refused", hosts=hosts, key=key, code=error.code, reason=reason)
        await anyio.sleep(_REFUSAL_SECONDS)
        return answer(FAILURE)


def listen(path: Path) -> socket.socket:
    """A listening socket at `path` that nobody but the owner of its directory may connect to."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    mask = os.umask(0o177)  # no instant in which the socket is open to others
    try:
        sock.bind(str(path))
    finally:
        os.umask(mask)
    owner = path.parent.stat()
    if owner.st_uid != os.geteuid():  # the group too: an idmapped mount shows nothing with an unmapped id
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
    sock.listen(_CONNECTIONS)
    return sock
