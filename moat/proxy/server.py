"""The forward proxy of one run: listeners, the number of connections, start and end.

Every connection is one task in the task group of its listener, and runs one coroutine from top to bottom
(`tunnel`). Timeouts are deadlines on streams, kept by one `Watch`.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskStatus

from moat.arguments import check
from moat.authority import Authority
from moat.errors import ArgumentError
from moat.grants import CredentialSource, Rule
from moat.proxy.accepting import accept
from moat.proxy.budget import Accounts, Budget
from moat.proxy.certs import RunCA
from moat.proxy.connection_tasks import connection_tasks
from moat.proxy.decider import Decider, Desk
from moat.proxy.dialling import UpstreamOptions
from moat.proxy.download import Unreadable
from moat.proxy.events import Denial, ExchangeFinished
from moat.proxy.limits import Limits
from moat.proxy.logins import LoginTable
from moat.proxy.mcp import McpTable
from moat.proxy.message import MessageReader
from moat.proxy.policy import Policy
from moat.proxy.site import Places, Setup
from moat.proxy.site_rules import BodyLeaks, InjectionTable
from moat.proxy.ssh import SshTunnel
from moat.proxy.stream import StreamError, open_stream
from moat.proxy.tunnel import Tunnel
from moat.proxy.upstream import Upstream

if TYPE_CHECKING:
    from moat.proxy.standalone import OpenProxy

_log = logging.getLogger(__name__)

Serve = Callable[[Tunnel, socket.socket], Awaitable[None]]


def always_ready() -> Denial | None:
    return None


def always_allowed(_exchange: int, _host: str, _grants: tuple[str, ...]) -> Denial | None:
    return None


class Proxy:
    """Serves any number of listeners for one run."""

    def __init__(
        self,
        *,
        policy: Policy,
        ca: RunCA,
        rules: Sequence[Rule] = (),
        credentials: CredentialSource | None = None,
        upstream: Upstream,
        on_event: Callable[[ExchangeFinished], None],
        limits: Limits = Limits(),
        token: str | None = None,
        ready: Callable[[], Denial | None] = always_ready,
        on_use: Callable[[int, str, tuple[str, ...]], Denial | None] = always_allowed,
        tunnels: Iterable[SshTunnel] = (),
        mcp: McpTable | None = None,
        logins: LoginTable | None = None,
        budgets: Sequence[Budget] = (),
        decider: Decider | None = None,
        ask_every: bool = True,
        unreadable: Unreadable = "withhold",
        body_leaks: BodyLeaks = "refuse",
    ) -> None:
        """`on_event` must neither block nor raise. `ready` says why no exchange may start now.

        `on_use` is told (number of the exchange, host:port, names) of credentials that are about to go
        out, and may say why they must not.

        `token` is asked for on TCP listeners only; reaching a unix socket is permission enough. Raises
        ValueError for an empty one, and for a rule with a bad host pattern. `tunnels` are open in every
        policy mode. What `budgets` allow is counted from here on; all that match a host apply to it.
        `decider` is asked about every exchange that policy does not refuse, see `moat.proxy.decider`;
        without `ask_every` about those only that no rule allows either. `unreadable`: a response to a
        request with a credential that is encoded so that it cannot be searched for it is withheld, or
        passes. `body_leaks`: what becomes of a body with a placeholder on its way to a host that no rule is
        for.
        """
        check("token", token, str | None)
        if token == "":
            raise ArgumentError("the token is empty: whoever sends none would be let in")
        check("unreadable", unreadable, Unreadable)
        check("body_leaks", body_leaks, BodyLeaks)
        opened = {tunnel.authority: tunnel for tunnel in tunnels}
        table = InjectionTable(rules, body_leaks=body_leaks)
        self._setup = Setup(
            policy,
            ca,
            table,
            credentials,
            upstream,
            limits,
            on_event,
            ready,
            on_use,
            tunnels=opened,
            mcp=mcp or McpTable(),
            logins=logins or LoginTable(),
            accounts=Accounts(budgets),
            unreadable=unreadable,
            desk=decider
            and Desk(decider, seconds=limits.question_timeout, most=limits.questions, every=ask_every),
            streams=Places(limits.h2_streams_of_run),
            held=Places(limits.held),
        )
        self._token = token
        self._slots = anyio.Semaphore(limits.connections, fast_acquire=True)
        self._listening: set[anyio.CancelScope] = set()
        self._serving: set[anyio.CancelScope] = set()
        self._tunnels: set[Tunnel] = set()
        self._done = anyio.Event()  # set when the last connection has ended
        self._stopped = anyio.Event()  # set when the last listener has

    @classmethod
    def open(
        cls,
        *,
        port: int = 0,
        token: str | bool = True,
        policy: Policy = Policy(),
        rules: Sequence[Rule] = (),
        credentials: CredentialSource | Mapping[str, str] = MappingProxyType({}),
        budgets: Sequence[Budget] = (),
        decider: Decider | None = None,
        upstream: UpstreamOptions = UpstreamOptions(),
        limits: Limits = Limits(),
        record: str | os.PathLike[str] | None = None,
        grace: float = 1.0,
    ) -> AbstractAsyncContextManager[OpenProxy]:
        """A proxy that listens on a loopback port, with a CA of its own, until the block is left.

            async with Proxy.open(rules=[rule], credentials={"demo": token}) as proxy:
                async with httpx.AsyncClient(proxy=proxy.url, verify=proxy.client_context()) as client:
                    ...

        port: 0 for a free one.
        token: the password of the proxy; True for a random one, False for none (every user of the machine
        may then use the proxy, and with it the credentials).
        rules, credentials: which credential goes where, and the secrets by name, or a source of them.
        record: a file to which every exchange is appended, as in `network.jsonl`; while it cannot be written,
        no exchange begins.
        grace: seconds for exchanges under way when the block is left.

        Entering raises OSError (port taken, record cannot be opened), ConfigError (`upstream`), ValueError
        (bad host pattern), and of its kinds ArgumentError, which names what cannot be what it is.
        """
        from moat.proxy.standalone import open_proxy

        return open_proxy(
            port=port,
            token=token,
            policy=policy,
            rules=rules,
            credentials=credentials,
            budgets=budgets,
            decider=decider,
            upstream=upstream,
            limits=limits,
            record=record,
            grace=grace,
        )

    @property
    def connections(self) -> int:
        """Connections of clients at this moment."""
        return len(self._tunnels)

    async def serve(
        self,
        sock: socket.socket,
        *,
        authority: Authority | None = None,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve a listening socket (TCP or unix; owned from here on) until cancelled or `aclose`d.

        With `authority`, clients are not asked where to: all they send is for it.
        """

        def fixed(tunnel: Tunnel, _accepted: socket.socket) -> Awaitable[None]:
            return tunnel.explicit() if authority is None else tunnel.captured(authority)

        await self._serve(sock, fixed, task_status)

    async def serve_captured(
        self,
        sock: socket.socket,
        authority_of: Callable[[socket.socket], Authority | None],
        *,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve transparently captured connections; `authority_of` reads the address that was dialled.

        None means nobody has given that address a name: the connection is closed.
        """

        async def captured(tunnel: Tunnel, accepted: socket.socket) -> None:
            if (authority := authority_of(accepted)) is not None:
                await tunnel.captured(authority)

        await self._serve(sock, captured, task_status)

    async def aclose(self, grace: float = 0.0) -> None:
        """Stop listening, let exchanges under way finish for `grace` seconds, then end them."""
        for listening in tuple(self._listening):
            listening.cancel()
        for tunnel in tuple(self._tunnels):
            tunnel.finish()
        if self._tunnels:
            self._done = anyio.Event()
            with anyio.move_on_after(grace):
                await self._done.wait()
        for serving in tuple(self._serving):
            serving.cancel()
        if self._serving:
            self._stopped = anyio.Event()
            await self._stopped.wait()

    # --- one listener ----------------------------------------------------------------------------

    async def _serve(self, sock: socket.socket, serve: Serve, task_status: TaskStatus[None]) -> None:
        sock.setblocking(False)
        serving, listening = anyio.CancelScope(), anyio.CancelScope()
        self._serving.add(serving)
        self._listening.add(listening)
        try:
            with serving:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._setup.upstream.watch.run)
                    tasks.start_soon(self._setup.upstream.multiplexed.keep)
                    async with connection_tasks() as start:
                        with listening:
                            task_status.started()
                            await accept(
                                sock, self._slots, lambda accepted: start(self._connection(accepted, serve))
                            )
                        sock.close()
                    if self._tunnels:
                        await self._done.wait()  # other listeners' connections share what goes upstream
                    tasks.cancel_scope.cancel()
        finally:
            sock.close()
            self._listening.discard(listening)
            self._serving.discard(serving)
            if not self._serving:
                with anyio.CancelScope(shield=True):  # bounded: idle connections have nothing to flush
                    await self._setup.upstream.aclose()
                self._stopped.set()

    async def _connection(self, sock: socket.socket, serve: Serve) -> None:
        """One connection from its first byte to its last. What goes wrong in it ends it, and nothing else."""
        try:
            stream = await open_stream(sock, self._setup.upstream.watch)
            token = None if stream.local else self._token
            tunnel = Tunnel(self._setup, MessageReader(stream, self._setup.limits), token)
            self._tunnels.add(tunnel)
            try:
                await serve(tunnel, sock)
                await stream.aclose()
            finally:
                stream.abort()
                self._tunnels.discard(tunnel)
        except (StreamError, OSError):
            pass  # the client has gone; what it did is recorded where it was done
        except Exception:  # a mistake of ours must end one connection, not the run's network
            _log.exception("a connection ended by an error in moat")
        finally:
            self._slots.release()
            if not self._tunnels:
                self._done.set()
