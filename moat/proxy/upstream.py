"""The way out: a connection from the pool, or one that is dialled (`dialling`), and verified.

There is no unverified way: a certificate that does not hold ends the exchange with its reason.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import field
from time import monotonic

import anyio
import anyio.to_thread

from moat.authority import Authority
from moat.dataclass import dataclass
from moat.errors import ConfigError, MoatError
from moat.proxy.dialling import Dialler, Resolver, UpstreamError, UpstreamOptions
from moat.proxy.events import Denial
from moat.proxy.h2_pool import Multiplexed
from moat.proxy.limits import Limits
from moat.proxy.message import MessageReader
from moat.proxy.stream import Stream, StreamError, StreamTimeoutError, Watch
from moat.proxy.tls import H2, HTTP1, TLSError, verifying_context


@dataclass(slots=True, eq=False)
class Connection:
    """A verified connection to one origin."""

    key: tuple[str, str, int]  # scheme, host, port
    reader: MessageReader
    reused: bool = False  # came from the pool: it may turn out to have just been closed
    stream: Stream = field(init=False)

    def __post_init__(self) -> None:
        self.stream = self.reader.stream

    def __repr__(self) -> str:
        return f"<Connection {self.key[1]}:{self.key[2]}{' reused' if self.reused else ''}>"


class Upstream:
    """Connections to origins, dialled or from the pool. One per run; used by one event loop."""

    def __init__(
        self,
        options: UpstreamOptions = UpstreamOptions(),
        *,
        limits: Limits = Limits(),
        resolver: Resolver | None = None,
    ) -> None:
        """`resolver` None: the system's. Raises ConfigError when `options.proxy` is not a usable URL."""
        self.watch = Watch()  # deadlines of all streams of the proxy
        self._options = options
        self._limits = limits
        self._dialler = Dialler(options, limits, self.watch, resolver)
        self._context: ssl.SSLContext | None = None
        self._h2_context: ssl.SSLContext | None = None  # the same, and offers HTTP/2
        self._context_lock = anyio.Lock()
        self._idle: dict[tuple[str, str, int], list[Connection]] = {}
        self._idle_count = 0
        self.multiplexed = Multiplexed(limits, self.watch)

    async def prepare(self) -> ssl.SSLContext:
        """Build the verifying context off the event loop, once. Raises ConfigError for a bad bundle."""
        if self._context is None:
            async with self._context_lock:
                if self._context is None:
                    self._context = await anyio.to_thread.run_sync(self._build_context)
        return self._context

    async def _prepare_h2(self) -> ssl.SSLContext:
        if self._h2_context is None:
            async with self._context_lock:
                if self._h2_context is None:
                    self._h2_context = await anyio.to_thread.run_sync(self._build_context, (H2, HTTP1))
        return self._h2_context

    def _build_context(self, protocols: Sequence[str] = (HTTP1,)) -> ssl.SSLContext:
        try:
            return verifying_context(self._options.ca_bundle, self._options.extra_roots, protocols)
        except (OSError, ValueError) as error:
            raise ConfigError(
                [f"upstream.ca_bundle: {self._options.ca_bundle} cannot be used: {error}"],
                hint="upstream.ca_bundle in config.yaml must name a readable PEM file of certificates",
            ) from error

    def check(self, authority: Authority) -> Denial | None:
        """As `Dialler.check`."""
        return self._dialler.check(authority)

    async def dial(self, authority: Authority) -> Stream:
        """As `Dialler.dial`."""
        return await self._dialler.dial(authority)

    # --- connections -----------------------------------------------------------------------------

    async def acquire(
        self, scheme: str, authority: Authority, *, fresh: bool = False, protocol: str = HTTP1
    ) -> Connection:
        """A connection that can carry a request. `fresh`: not one that has been used.

        `protocol` is what the client speaks: for `h2` the server is asked whether it does too.
        Raises AddressDeniedError, UpstreamError.
        """
        key = (scheme, authority.host, authority.port)
        if protocol == H2 and self.multiplexed.protocol(key) != HTTP1:
            return await self._acquire_stream(key, authority, fresh=fresh)
        if not fresh and (pooled := self._take(key)) is not None:
            return pooled
        if self.multiplexed.only(key):
            return await self._acquire_stream(key, authority, fresh=fresh)
        stream = await self.dial(authority)
        try:
            if scheme == "https":
                await self._secure(stream, authority.host, await self._prepared(self.prepare))
        except UpstreamError as error:
            stream.abort()
            if error.code != "alpn":
                raise
            self.multiplexed.remember(key, H2, only=True)
            return await self._acquire_stream(key, authority, fresh=fresh)
        except BaseException:
            stream.abort()
            raise
        return Connection(key, MessageReader(stream, self._limits))

    async def _acquire_stream(
        self, key: tuple[str, str, int], authority: Authority, *, fresh: bool
    ) -> Connection:
        """A stream of an HTTP/2 connection, or a connection of its own when the server has no HTTP/2."""
        multiplexed = self.multiplexed
        dialling = multiplexed.dialling(key)
        made, failures = dialling.made, dialling.failures
        async with dialling.lock:
            new = dialling.made > made  # and as good as one of our own
            if (new or not fresh) and (reader := multiplexed.take(key)) is not None:
                return Connection(key, reader, reused=True)
            if multiplexed.protocol(key) != HTTP1:
                dialling.check(failures)
                try:
                    connection = await self._dial_multiplexed(key, authority)
                    dialling.made += 1
                    return connection
                except UpstreamError as error:
                    dialling.failed(error)
                    raise
        return await self.acquire(key[0], authority, fresh=fresh)

    async def _dial_multiplexed(self, key: tuple[str, str, int], authority: Authority) -> Connection:
        stream = await self.dial(authority)
        try:
            context = await self._prepared(self._prepare_h2)
            if await self._secure(stream, authority.host, context) == H2:
                return Connection(key, await self.multiplexed.adopt(key, stream))
        except BaseException:
            stream.abort()
            raise
        self.multiplexed.remember(key, HTTP1)
        return Connection(key, MessageReader(stream, self._limits))

    def release(self, connection: Connection) -> None:
        """Give back a connection whose last exchange was read to its end."""
        while self._idle_count >= self._limits.upstream_idle:
            self._evict()
        connection.reused = True
        connection.stream.deadline = monotonic() + self._limits.upstream_idle_timeout
        self._idle.setdefault(connection.key, []).append(connection)
        self._idle_count += 1

    def _take(self, key: tuple[str, str, int]) -> Connection | None:
        """The connection that was used last: the one most likely to be alive."""
        idle = self._idle.get(key)
        while idle:
            connection = idle.pop()
            self._idle_count -= 1
            if not idle:
                del self._idle[key]
            if connection.stream.quiet():
                return connection
            connection.stream.close()
        return None

    def _evict(self) -> None:
        """Close the connection that has been idle longest among those of the first host."""
        key = next(iter(self._idle))
        idle = self._idle[key]
        idle.pop(0).stream.close()
        self._idle_count -= 1
        if not idle:
            del self._idle[key]

    async def aclose(self) -> None:
        """Close every idle connection, and wait until their sockets are released."""
        idle = [connection for connections in self._idle.values() for connection in connections]
        self._idle.clear()
        self._idle_count = 0
        async with anyio.create_task_group() as closing:
            for connection in idle:
                closing.start_soon(connection.stream.aclose)

    async def _secure(self, stream: Stream, host: str, context: ssl.SSLContext) -> str:
        """TLS, verified; the protocol that it agreed on."""
        stream.deadline = monotonic() + self._limits.tls_handshake_timeout
        try:
            tls = await stream.start_tls(context, server_side=False, server_hostname=host)
        except TLSError as error:
            if error.no_protocol:
                raise UpstreamError("alpn", f"{host} does not speak HTTP/1.1") from error
            if error.verification:
                raise UpstreamError(
                    "certificate",
                    f"the certificate of {host} is not accepted: {error}",
                    hint="if a company proxy opens TLS, name its CA in upstream.ca_bundle in config.yaml",
                ) from error
            raise UpstreamError("tls", f"TLS with {host} failed: {error}") from error
        except StreamTimeoutError as error:
            raise UpstreamError("timeout", f"TLS with {host} timed out", status=504) from error
        except StreamError as error:
            raise UpstreamError("tls", f"TLS with {host} failed: {error}") from error
        return tls.selected_alpn_protocol() or HTTP1

    @staticmethod
    async def _prepared(prepare: Callable[[], Awaitable[ssl.SSLContext]]) -> ssl.SSLContext:
        try:
            return await prepare()
        except MoatError as error:
            raise UpstreamError("certificate", str(error), hint=error.hint or "") from error
