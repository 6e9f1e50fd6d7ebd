"""Connections of browsers and programs to the gateway, from their first byte to their last.

The first byte tells TLS from plain HTTP, which is answered as well: nothing of it leaves this machine, and
it works before anybody has trusted the CA. A request is for the run and the endpoint that its Host names;
that name must be ours (a page that made its own name point at loopback has another one), and over TLS it
must be the one that the handshake was for. Programs of other users of the machine are told nothing.
"""

from __future__ import annotations

import errno
import logging
import socket
from contextlib import suppress
from time import monotonic

import anyio
from anyio.abc import TaskGroup

from moat.paths import Home
from moat.proxy.accepting import accept
from moat.proxy.head import Form, Framing, MalformedError, RequestHead
from moat.proxy.message import MessageReader
from moat.proxy.stream import Stream, StreamError, Watch, open_stream
from moat.proxy.tls import TLSError
from moat.proxy.tunnel import linger
from moat.runtime import records
from moat.runtime.endpoints import pages
from moat.runtime.endpoints.ca import EndpointTLS
from moat.runtime.endpoints.forward import (
    LIMITS,
    DownError,
    Line,
    LostError,
    Sender,
    client_address,
)
from moat.runtime.endpoints.guard import foreign
from moat.runtime.endpoints.names import DOMAIN, Place, parse_host
from moat.runtime.endpoints.pages import Page
from moat.runtime.endpoints.peer import owner
from moat.runtime.endpoints.routes import Route, Routes

_TLS_HANDSHAKE = b"\x16"  # first byte of every TLS connection: content type "handshake"
_CONNECTIONS = 1024
_LAST = frozenset({400, 421})  # whoever sends that is not asked for more
_log = logging.getLogger(__name__)


class Server:
    """Serves any number of listeners."""

    def __init__(
        self, home: Home, routes: Routes, tls: EndpointTLS, port: int, users: frozenset[int]
    ) -> None:
        """`users`: uids whose programs are answered."""
        self.users = users
        self.home = home
        self.routes = routes
        self.tls = tls
        self.port = port
        self.watch = Watch()
        self._slots = anyio.Semaphore(_CONNECTIONS)

    async def serve(self, listener: socket.socket) -> None:
        """Serve until cancelled, or until the listener was shut down; owns it."""
        listener.setblocking(False)
        with listener:
            async with anyio.create_task_group() as tasks:
                await self._accept(listener, tasks)
                tasks.cancel_scope.cancel()

    async def _accept(self, listener: socket.socket, connections: TaskGroup) -> None:
        try:
            await accept(
                listener, self._slots, lambda accepted: connections.start_soon(self._connection, accepted)
            )
        except OSError as error:
            if error.errno != errno.EINVAL:  # what accept() says once the listener was shut down
                raise

    async def _connection(self, sock: socket.socket) -> None:
        """What goes wrong in one connection ends it, and nothing else."""
        try:
            sender, known = client_address(sock), owner(sock) in self.users
            stream = await open_stream(sock, self.watch)
            try:
                await Connection(self, stream, sender, known=known).serve()
                await stream.aclose()
            finally:
                stream.abort()
        except (StreamError, OSError):
            pass  # the client has gone
        except Exception:  # a mistake of ours must end one connection, not every run's endpoints
            _log.exception("a connection ended by an error in moat")
        finally:
            self._slots.release()


class Connection:
    """One connection. All its requests are for one place, since they have one server name."""

    def __init__(self, server: Server, stream: Stream, address: str, *, known: bool) -> None:
        self._known = known
        self._server = server
        self._stream = stream
        self._client = MessageReader(stream, LIMITS)
        self._address = address
        self._scheme = "http"
        self._name: str | None = None  # of the TLS handshake
        self._line: tuple[str, Line] | None = None  # the ingress it leads to, and the connection

    async def serve(self) -> None:
        try:
            if not await self._begin():
                return
            while (head := await self._client.request()) is not None:
                if not await self._exchange(head):
                    return
        except MalformedError as error:
            page = Page(status=400, title="Not a request", text=str(error))
            await self._answer(page, None, whole=False)
        finally:
            if self._line is not None:
                self._line[1].close()

    async def _begin(self) -> bool:
        """TLS, if the client speaks it. False: it sent nothing."""
        stream = self._stream
        stream.deadline = monotonic() + LIMITS.client_idle_timeout
        first = await stream.receive()
        if not first.startswith(_TLS_HANDSHAKE):
            self._client.buffer = first
            return bool(first)
        stream.unread(first)
        stream.deadline = monotonic() + LIMITS.tls_handshake_timeout
        try:
            session = await stream.start_tls(self._server.tls.context(), server_side=True)
        except TLSError:
            await stream.aclose()  # and not a reset: the alert says why
            return False
        self._scheme = "https"
        self._name = self._server.tls.name(session)
        return True

    async def _exchange(self, head: RequestHead) -> bool:
        """One request; False when it was the connection's last."""
        found = self._find(head)
        if isinstance(found, Page):
            return await self._answer(found, head, whole=head.framing is Framing.NONE)
        route, endpoint = found
        try:
            line = self._line_to(route.endpoints[endpoint].socket)
            sender = Sender(self._address, self._scheme)
            download = await line.exchange(self._client, head, sender.headers(head))
        except DownError as error:
            page = pages.down(route, endpoint, str(error), self._state(route))
            return await self._answer(page, head, whole=head.framing is Framing.NONE)
        except LostError:
            # What came cannot be taken for the whole: TLS ends without its goodbye.
            await self._stream.aclose(goodbye=False)
            return False
        if not download.keep and head.framing is not Framing.NONE:
            await linger(self._stream, LIMITS)
        return download.keep

    def _find(self, head: RequestHead) -> tuple[Route, str] | Page:
        """Where a request goes, or what is said to it."""
        server = self._server
        if not self._known:
            return Page(
                status=403, title="Not from there", text="This belongs to another user of this machine."
            )
        place = parse_host(head.host)
        if place is None:
            return Page(
                status=421, title="Not the name of an endpoint",
                text=f"Open https://{DOMAIN}:{server.port} for the names that there are.",
            )  # fmt: skip
        if self._name is not None and self._name != place.host:
            return Page(
                status=421, title="Another name", text="The connection was made for another host than this."
            )
        if head.form is not Form.ORIGIN:
            return Page(status=400, title="Not a request", text="This is no proxy: send a path.")
        if why := foreign(head, place):
            return Page(
                status=403, title="Not from there",
                text=f"An endpoint answers its own run's pages and whoever opens it, and {why}.",
            )  # fmt: skip
        return self._route(place, head)

    def _route(self, place: Place, head: RequestHead) -> tuple[Route, str] | Page:
        server = self._server
        if place.run is None:
            page = pages.index(server.routes.alive(), server.port)
        else:
            route = server.routes.find(place.run)
            if route is not None and place.endpoint and place.endpoint in route.endpoints:
                return route, place.endpoint
            if route is None or place.endpoint is not None:
                return pages.unknown(place, server.routes.alive(), server.port)
            page = pages.run_index(route, server.port)
        if head.target.partition(b"?")[0] != b"/":
            return Page(status=404, title="Not here", text=f"The index is at {place.url(server.port)}/.")
        return page

    def _line_to(self, path: str) -> Line:
        if self._line is None or self._line[0] != path:
            if self._line is not None:
                self._line[1].close()
            self._line = (path, Line(path, self._server.watch))
        return self._line[1]

    def _state(self, route: Route) -> str:
        record = records.read(self._server.home, route.id)
        return str(record.state) if record is not None else "gone"

    async def _answer(self, page: Page, head: RequestHead | None, *, whole: bool) -> bool:
        """Say it; True when another request may follow. `whole`: nothing of the request is still to come."""
        keep = head is not None and head.keep_alive and whole and page.status not in _LAST
        self._stream.deadline = monotonic() + LIMITS.close_timeout
        await self._stream.send(page.wire(head, close=not keep))
        if not keep:
            with suppress(StreamError):
                await linger(self._stream, LIMITS)
        return keep
