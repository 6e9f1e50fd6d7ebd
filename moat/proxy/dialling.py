"""From an authority to a TCP connection: resolve once, refuse what is not public, connect to exactly that.

Everything here is decided by the run's owner (`UpstreamOptions`), never by the sandbox or its workspace.
"""

from __future__ import annotations

import socket
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from urllib.parse import unquote, urlsplit

import anyio
import anyio.to_thread

from moat.authority import Authority, literal, parse_authority
from moat.dataclass import dataclass
from moat.errors import ConfigError, MoatError
from moat.proxy.address import refuse
from moat.proxy.events import Denial, DeniedError
from moat.proxy.head import MalformedError
from moat.proxy.limits import Limits
from moat.proxy.message import MessageReader
from moat.proxy.own import is_own
from moat.proxy.policy import HOST_NAME
from moat.proxy.race import connect_first
from moat.proxy.render import render_request
from moat.proxy.stream import Stream, StreamError, StreamTimeoutError, Watch, broken

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
_RESOLVERS = 16  # names looked up at one time: getaddrinfo holds a thread while it waits


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamOptions:
    """How the user's machine reaches the world; from the user's own configuration only."""

    ca_bundle: Path | None = None  # PEM file of roots that are trusted besides the system's
    extra_roots: bytes = b""  # the same, as PEM text
    proxy: str | None = None  # `http://[user:password@]host[:port]`
    connect_to: Mapping[tuple[str, int], tuple[str, int]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    """Where to connect instead. TLS is still verified for the original name."""
    host_ports: frozenset[int] = frozenset()  # ports of this machine that `moat-host` may reach
    own_port: Callable[[], int | None] = lambda: None  # one that it may never: what listens there is Moat's


class UpstreamError(Exception):
    """The upstream cannot be used. `status` is what the client gets (502 or 504)."""

    def __init__(self, code: str, reason: str, *, status: int = 502, hint: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.status = status
        self.hint = hint

    def again(self) -> UpstreamError:
        """The same for somebody else, without what this one remembers of where it was raised."""
        return UpstreamError(self.code, self.reason, status=self.status, hint=self.hint)


class AddressDeniedError(DeniedError):
    """The address guard said no; nothing was connected."""


async def resolve(host: str, port: int, *, threads: anyio.CapacityLimiter) -> Sequence[str]:
    """The addresses of a name, by the system's resolver, in its order. Raises OSError."""
    if literal(host) is not None:
        return [host]  # no thread has to be woken for it
    found = await anyio.to_thread.run_sync(
        lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM),
        abandon_on_cancel=True,
        limiter=threads,
    )
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Dialler:
    """The way to origins that the user's machine has. Opens, and keeps nothing."""

    def __init__(
        self, options: UpstreamOptions, limits: Limits, watch: Watch, resolver: Resolver | None
    ) -> None:
        """Raises ConfigError when `options.proxy` is not a usable URL."""
        self._options = options
        self._limits = limits
        self._watch = watch
        # Threads of its own: a name server that hangs must not hold up whoever else works in threads.
        self._resolve = resolver or partial(resolve, threads=anyio.CapacityLimiter(_RESOLVERS))
        self._proxy = _parse_proxy(options.proxy) if options.proxy else None

    def check(self, authority: Authority) -> Denial | None:
        """What can be said of an authority without looking anything up: literals and this machine."""
        if authority.host == HOST_NAME:
            return self._check_port(authority.port)
        if authority.address is None or self._mapped(authority) is not None:
            return None
        reason = refuse(authority.address)
        return _address_denial(authority.host, authority.host, reason) if reason else None

    def _check_port(self, port: int) -> Denial | None:
        if port not in self._options.host_ports:
            return Denial(
                code="address",
                reason=f"port {port} of this machine is not open to the run",
                rule="network.host",
                hint=f"add {port} to network.host in agent.yaml",
            )
        if port == self._options.own_port():
            return Denial(
                code="address",
                reason=f"behind port {port} of this machine are the endpoints of runs, which no run may use",
                rule="address guard",
                hint="take it out of network.host in agent.yaml",
            )
        return None

    async def dial(self, authority: Authority) -> Stream:
        """A TCP connection to the authority, by the way the options say.

        Raises AddressDeniedError before any socket is opened; UpstreamError.
        """
        try:
            with anyio.fail_after(self._limits.dial_timeout):
                return await self._dial(authority)
        except TimeoutError:
            raise UpstreamError(
                "timeout", f"{authority} cannot be reached within {self._limits.dial_timeout:g} s", status=504
            ) from None

    async def _dial(self, authority: Authority) -> Stream:
        if (denial := self.check(authority)) is not None:
            raise AddressDeniedError(denial)
        if authority.host == HOST_NAME:
            return await self._connect(authority, ["127.0.0.1"], authority.port)
        if (mapped := self._mapped(authority)) is not None:
            return await self._connect(authority, await self._look_up(*mapped), mapped[1])
        if self._proxy is not None:
            return await self._through_proxy(self._proxy, authority)
        addresses = await self._look_up(authority.host, authority.port)
        self._guard(authority, addresses)
        return await self._connect(authority, addresses, authority.port)

    def _mapped(self, authority: Authority) -> tuple[str, int] | None:
        return self._options.connect_to.get((authority.host, authority.port))

    async def _look_up(self, host: str, port: int) -> Sequence[str]:
        try:
            addresses = await self._resolve(host, port)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UpstreamError("dns", f"{host} cannot be resolved: {reason.lower()}") from error
        if not addresses:
            raise UpstreamError("dns", f"{host} has no address")
        return addresses

    @staticmethod
    def _guard(authority: Authority, addresses: Sequence[str]) -> None:
        """One address that is not public condemns the name: its owner chooses which one we would try."""
        for address in addresses:
            if (why := refuse(address) or _why_own(authority, address)) is not None:
                raise AddressDeniedError(_address_denial(authority.host, address, why))

    async def _connect(self, authority: Authority, addresses: Sequence[str], port: int) -> Stream:
        """Connect to one of the checked addresses, never to a name: it could resolve differently now."""
        try:
            return await connect_first(addresses, port, self._watch, self._limits)
        except StreamError as error:
            status = 504 if isinstance(error, StreamTimeoutError) else 502
            raise UpstreamError(
                "connect", f"{authority} cannot be reached: {error}", status=status
            ) from error

    # --- an upstream HTTP proxy ------------------------------------------------------------------

    async def _through_proxy(self, proxy: ProxyAddress, authority: Authority) -> Stream:
        """CONNECT through the user's proxy, for http as well: one way, and the target stays ours."""
        await self._guard_what_resolves(authority)
        addresses = await self._look_up(proxy.host, proxy.port)
        stream = await self._connect(Authority(proxy.host, proxy.port), addresses, proxy.port)
        try:
            await self._ask_proxy(stream, proxy, authority)
        except BaseException:
            stream.abort()
            raise
        return stream

    async def _guard_what_resolves(self, authority: Authority) -> None:
        """The proxy resolves for us. What this machine knows of the name is still checked."""
        try:
            addresses = await self._look_up(authority.host, authority.port)
        except UpstreamError:
            return  # the usual case behind a company proxy: no public DNS
        self._guard(authority, addresses)

    async def _ask_proxy(self, stream: Stream, proxy: ProxyAddress, authority: Authority) -> None:
        target = str(authority).encode()
        headers = [(b"Host", target)]
        if proxy.authorization:
            headers.append((b"Proxy-Authorization", proxy.authorization))
        reader = MessageReader(stream, self._limits)
        stream.deadline = monotonic() + self._limits.dial_timeout
        try:
            await stream.send(render_request(b"CONNECT", target, headers))
            while (head := await reader.response(b"CONNECT")).status < 200:
                pass
        except (StreamError, MalformedError) as error:
            raise UpstreamError("proxy", f"the upstream proxy failed: {error}") from error
        if not 200 <= head.status < 300:
            raise UpstreamError(
                "proxy",
                f"the upstream proxy answered {head.status} for {authority}",
                hint="check upstream.proxy in config.yaml" if head.status == 407 else "",
            )
        stream.unread(reader.buffer)


@dataclass(frozen=True, slots=True)
class ProxyAddress:
    host: str
    port: int
    authorization: bytes = field(default=b"", repr=False)  # `Basic …`, or b""


def _parse_proxy(url: str) -> ProxyAddress:
    """Read `http://[user:password@]host[:port]`. Raises ConfigError, without showing the password."""
    wrong = ConfigError(
        ["upstream.proxy is not a URL of the form http://[user:password@]host[:port]"],
        hint="correct upstream.proxy in config.yaml",
    )
    try:
        parts = urlsplit(url)
        authority = parse_authority(parts.netloc.rpartition("@")[2], default_port=parts.port or 80)
    except (ValueError, MoatError):
        raise wrong from None
    if parts.scheme != "http" or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise wrong
    if parts.username is None:
        return ProxyAddress(authority.host, authority.port)
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    return ProxyAddress(authority.host, authority.port, b"Basic " + b64encode(login))


def _why_own(authority: Authority, address: str) -> str | None:
    """Why an address must not be dialled that is public, and this machine's. Raises UpstreamError."""
    try:
        return "this machine's own" if is_own(address) else None
    except OSError as error:
        raise UpstreamError("connect", f"{authority} cannot be reached: {broken(error)}") from error


def _address_denial(host: str, address: str, reason: str) -> Denial:
    what = host if host == address else f"{host} ({address})"
    return Denial(
        code="address",
        reason=f"{what} is not a public address: {reason}",
        rule="address guard",
        hint="a service on this machine can be opened with network.host in agent.yaml, as moat-host:<port>",
    )
