"""Doing what was allowed: by the user's own SSH agent, or with a key file that is not encrypted.

A key file is read when a signature is wanted, and forgotten after it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
from anyio.streams.buffered import BufferedByteReceiveStream

from moat.dataclass import dataclass
from moat.errors import GrantError
from moat.runtime.ssh import keyfile
from moat.runtime.ssh.messages import (
    FAILURE,
    REQUEST_IDENTITIES,
    Identity,
    SignRequest,
    answer,
    read_identities,
    read_sign_response,
    sign_request,
)
from moat.sshwire import WireError
from moat.vault.ssh import SshGrant

T = TypeVar("T")
_LIST_SECONDS = 5.0
_SIGN_SECONDS = 120.0  # the user may have to confirm, or to touch a security key
_MAX_ANSWER = 256 * 1024  # what OpenSSH's own agent allows


class SigningError(Exception):
    """No signature could be made. `str()` says why."""


async def read_message(stream: BufferedByteReceiveStream, limit: int) -> bytes:
    """The payload of the next message. Raises WireError, anyio.IncompleteRead, anyio.EndOfStream."""
    length = int.from_bytes(await stream.receive_exactly(4), "big")
    if not 0 < length <= limit:
        raise WireError("the message has no possible length")
    return await stream.receive_exactly(length)


@dataclass(frozen=True, slots=True)
class UserAgent:
    """The user's own agent, by its socket; "" is none."""

    socket: str

    async def identities(self) -> tuple[Identity, ...]:
        """The keys that it holds. Raises SigningError."""
        return await self._ask(answer(REQUEST_IDENTITIES), read_identities, _LIST_SECONDS)

    async def sign(self, request: SignRequest) -> bytes:
        """Raises SigningError."""
        return await self._ask(sign_request(request), read_sign_response, _SIGN_SECONDS)

    async def _ask(self, message: bytes, read: Callable[[bytes], T], patience: float) -> T:
        if not self.socket:
            raise SigningError("no SSH agent runs (SSH_AUTH_SOCK is not set)")
        try:
            with anyio.fail_after(patience):
                async with await anyio.connect_unix(self.socket) as stream:
                    await stream.send(message)
                    reply = await read_message(BufferedByteReceiveStream(stream), _MAX_ANSWER)
            if reply[0] == FAILURE:
                raise SigningError("your SSH agent refused")
            return read(reply)
        except TimeoutError:
            raise SigningError(f"your SSH agent did not answer within {patience:g} s") from None
        except (OSError, anyio.BrokenResourceError, anyio.EndOfStream, anyio.IncompleteRead) as error:
            raise SigningError(f"your SSH agent at {self.socket} does not answer: {_cause(error)}") from None
        except WireError as error:
            raise SigningError(f"your SSH agent answered nonsense: {error}") from None


def _cause(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "it closed the connection"


def agent_of(grant: SshGrant) -> UserAgent:
    """The agent that ssh itself would ask for this host."""
    named = grant.agent or os.environ.get("SSH_AUTH_SOCK", "")
    return UserAgent("" if named == "none" else named)


async def sign(grant: SshGrant, request: SignRequest) -> bytes:
    """By the agent when it holds the key, else with the file. Raises SigningError."""
    agent = agent_of(grant)
    try:
        held = any(identity.key == grant.key for identity in await agent.identities())
        trouble = "the key is not in your SSH agent"
    except SigningError as error:
        held, trouble = False, str(error)
    if held:
        return await agent.sign(request)
    if not grant.key_path:
        raise SigningError(trouble)
    try:
        return await anyio.to_thread.run_sync(
            keyfile.sign, Path(grant.key_path), grant.key, request.data, request.flags
        )
    except keyfile.KeyFileError as error:
        raise SigningError(f"{trouble}, and {error}") from None


async def check(grant: SshGrant) -> None:
    """Whether `sign` would work now. Raises GrantError with the way out."""
    try:
        if any(identity.key == grant.key for identity in await agent_of(grant).identities()):
            return
        trouble = "is not in your SSH agent"
    except SigningError as error:
        trouble = f"cannot be used: {error}"
    what = f"the key of {grant.name} ({grant.fingerprint}) {trouble}"
    if not grant.key_path:
        raise GrantError(what, hint="start the agent that holds it, or add it with `ssh-add <key file>`")
    try:
        await anyio.to_thread.run_sync(keyfile.check, Path(grant.key_path), grant.key)
    except keyfile.KeyFileError as error:
        raise GrantError(f"{what}, and {error}", hint=f"run `ssh-add {grant.key_path}`") from None
