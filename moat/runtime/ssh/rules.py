"""What one connection of a run's agent may do. Pure decisions over what the client said; no input or output.

A connection begins unbound: it may list, and sign nothing. `session-bind@openssh.com` binds it to the session
of one host. Whatever is refused for a reason of security is final: the connection signs nothing after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from moat.dataclass import dataclass
from moat.runtime.ssh.hostkeys import HostKeys, verify
from moat.runtime.ssh.messages import Identity, SessionBind, SignRequest, UserAuth, read_userauth
from moat.sshwire import WireError
from moat.vault.ssh import SshGrant

_UNBOUND = (
    "the client did not say which session it is for (session-bind@openssh.com): OpenSSH 8.9 and later do, "
    "older ones and libraries with an SSH of their own (libssh2, Paramiko, Go) do not; use the `ssh` program"
)


class RefusedError(Exception):
    """The agent will not do it. `code` is for programs, `str()` for people; `final`: nor anything else."""

    def __init__(self, code: str, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.code = code
        self.final = final


@dataclass(frozen=True, slots=True)
class Destination:
    """One grant of the run, and what makes a session one with its host."""

    grant: SshGrant
    known: HostKeys
    seen: Callable[[bytes], bool]  # whether a session with this signature went through the run's tunnel to it


@dataclass(frozen=True, slots=True)
class Approval:
    """A signature that may be made."""

    grant: SshGrant
    login: UserAuth


class Rules:
    """The state of one connection."""

    def __init__(self, destinations: Iterable[Destination], now: Callable[[], float] = time.time) -> None:
        self._all = tuple(destinations)
        self._now = now
        self._bound: tuple[Destination, ...] = ()
        self._session: SessionBind | None = None
        self._over = ""  # why nothing is signed any more

    @property
    def hosts(self) -> tuple[str, ...]:
        """The granted hosts that the connection is bound to: one, unless one server has several names."""
        return tuple(destination.grant.host for destination in self._bound)

    def identities(self) -> tuple[Identity, ...]:
        """What may be listed: the keys of the bound host, or of all granted hosts before there is one."""
        if self._over:
            return ()
        found = self._bound or self._all
        return tuple({d.grant.key: Identity(d.grant.key, d.grant.comment.encode()) for d in found}.values())

    def bind(self, bind: SessionBind) -> None:
        """Raises RefusedError."""
        self._go_on()
        if bind.forwarding:
            # Whoever has a shell on that host could go on from there as the user.
            raise self._end("forwarded", "the agent is not forwarded to other hosts")
        if self._session is not None:
            if (bind.session, bind.host_key) == (self._session.session, self._session.host_key):
                return
            raise self._end("rebind", "the connection is bound to another session already")
        known = {d: key for d in self._all if (key := d.known.proven(bind.host_key, self._now())) is not None}
        if not known:
            raise self._end("host", "the host's key is not that of a granted host")
        if not all(verify(key, bind.signature, bind.session) for key in set(known.values())):
            raise self._end("signature", "the host did not sign this session")
        bound = tuple(d for d in known if d.seen(bind.signature))
        if not bound:
            raise self._end("tunnel", "the session did not go through this run's own tunnel")
        self._session, self._bound = bind, bound

    def judge(self, request: SignRequest) -> Approval:
        """What may be signed. Raises RefusedError."""
        self._go_on()
        if self._session is None:
            raise RefusedError("unbound", _UNBOUND)
        destination = next((d for d in self._bound if d.grant.key == request.key), None)
        if destination is None:
            raise RefusedError("key", "the key is not granted for this host")
        try:
            login = read_userauth(request)
        except WireError as error:
            raise RefusedError("data", str(error)) from None
        if login.session != self._session.session:
            raise self._end("session", "the request to log in is for another session")
        if login.host_key is not None and login.host_key != self._session.host_key:
            raise self._end("session", "the request to log in names another host key")
        return Approval(destination.grant, login)

    def _go_on(self) -> None:
        if self._over:
            raise RefusedError("ended", f"nothing is done on this connection any more: {self._over}")

    def _end(self, code: str, reason: str) -> RefusedError:
        self._over = reason
        return RefusedError(code, reason, final=True)
