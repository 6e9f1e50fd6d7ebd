"""A connection's way to its exchanges: proxy requests, CONNECT, TLS that we terminate, opaque ports.

  explicit    a proxy request: CONNECT opens a tunnel, an absolute-form target is an exchange by itself
  captured    no CONNECT was needed: the address that the client dialled says where it meant to go
  inside      after either: TLS or plain HTTP, told by the first byte; then exchange after exchange
  opaque      a port of this machine that the run's config opens: bytes, no HTTP, no credential;
              or SSH to a host that is granted for it, the same way

A refused CONNECT is accepted all the same, and the refusal is said inside, where clients read it.
"""

from __future__ import annotations

import hmac
from base64 import b64decode
from binascii import Error as Base64Error
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from time import monotonic, time
from typing import TYPE_CHECKING

from moat.authority import Authority, AuthorityError, parse_authority
from moat.proxy.answers import CHALLENGE, ESTABLISHED, Answer, denied, malformed
from moat.proxy.budget import Spending
from moat.proxy.dialling import UpstreamError
from moat.proxy.events import Denial, DeniedError, ExchangeFinished, Undecided, Warned
from moat.proxy.exchange import After, Exchange
from moat.proxy.fields import split_fields
from moat.proxy.head import Form, Framing, MalformedError, RequestHead
from moat.proxy.http1 import split_absolute
from moat.proxy.limits import Limits
from moat.proxy.message import MessageReader
from moat.proxy.policy import HOST_NAME, ssh_denial
from moat.proxy.relay import Traffic, Watch, relay
from moat.proxy.render import render_response
from moat.proxy.site import SITES, Setup, Site
from moat.proxy.ssh import IDENTIFICATION, SshWatch, refusal
from moat.proxy.stream import Stream, StreamError
from moat.proxy.tls import H2, HTTP1, TLSError

if TYPE_CHECKING:
    from moat.proxy.h2_server import Server

_MEMORABLE = 4096  # bytes of a block of fields whose password is remembered
_TLS_HANDSHAKE = b"\x16"  # first byte of every TLS connection: content type "handshake"


@dataclass(slots=True, eq=False)
class Tunnel:
    """One connection from the sandbox."""

    setup: Setup
    client: MessageReader
    token: str | None = None  # what Proxy-Authorization must carry; None: the socket is the identity
    closing: bool = False  # the proxy ends: no further request
    idle: bool = False  # waiting for a request that nobody has begun
    multiplexed: Server | None = None  # once the client speaks HTTP/2

    @property
    def stream(self) -> Stream:
        return self.client.stream

    # --- explicit and captured -------------------------------------------------------------------

    async def explicit(self) -> None:
        """Serve a client that knows it speaks to a proxy."""
        while (head := await self._request(None)) is not None:
            if not self._authorised(head):
                if not await self._challenge(head):
                    return
            elif head.method == b"CONNECT":
                await self._connect(head)
                return
            elif not await self._after(await self._absolute(head)):
                return

    async def captured(self, authority: Authority) -> None:
        """Serve a client that believes it has reached `authority` itself."""
        denial = self._judge(authority, ssh=authority in self.setup.tunnels)
        if denial is None and self._is_opaque(authority):
            await self._opaque(authority, b"")
        else:
            await self._inside(authority, denial)

    async def _connect(self, head: RequestHead) -> None:
        try:
            authority = parse_authority(head.target)
        except AuthorityError as error:
            await self._refuse(None, malformed(MalformedError("bad-authority", str(error), 400, "client")))
            return
        denial = self._judge(authority, ssh=authority in self.setup.tunnels)
        if denial is None and self._is_opaque(authority):
            await self._opaque(authority, ESTABLISHED)
            return
        await self.stream.send(ESTABLISHED)
        await self._inside(authority, denial)

    def _judge(self, authority: Authority, *, ssh: bool = False) -> Denial | None:
        """What can be refused before a name is resolved. Names are checked when they are dialled.

        ssh: for a tunnel that carries SSH and nothing else, which its grant opens whatever policy says.
        """
        setup = self.setup
        if (denial := setup.ready()) is not None:
            return denial
        key, known = (authority, ssh), setup.refusals
        if key not in known:
            denial = (None if ssh else self._policy_denial(authority)) or setup.upstream.check(authority)
            known[key] = denial
            if len(known) > SITES:
                known.popitem(last=False)
            return denial
        return known[key]

    def _policy_denial(self, authority: Authority) -> Denial | None:
        """What ends a tunnel. What is only warned of, or is to be asked about, is each exchange's."""
        denial = self.setup.policy.authority(authority.host, authority.port)
        if isinstance(denial, Warned) or (isinstance(denial, Undecided) and self.setup.desk is not None):
            return None
        return denial

    def _is_opaque(self, authority: Authority) -> bool:
        """A port of this machine carries any protocol, unless an MCP server is known to be there."""
        if authority in self.setup.tunnels:
            return True
        return authority.host == HOST_NAME and self.setup.mcp.at(HOST_NAME, authority.port) is None

    async def _absolute(self, head: RequestHead) -> After:
        """An exchange on its own: `GET http://host/path`, always without a credential."""
        if head.form is not Form.ABSOLUTE:
            fault = MalformedError(
                "bad-target-form", "this is a proxy: the target must be a URL", 400, "client"
            )
            return await self._refuse(None, malformed(fault))
        scheme, target, _ = split_absolute(head.target)
        if scheme != b"http":
            fault = MalformedError("bad-scheme", "https goes through CONNECT", 400, "client")
            return await self._refuse(None, malformed(fault))
        try:
            authority = parse_authority(target, default_port=80)
        except AuthorityError as error:
            return await self._refuse(
                None, malformed(MalformedError("bad-authority", str(error), 400, "client"))
            )
        site = Site.of(self.setup, "http", authority, self._judge(authority))
        return await Exchange(self.setup, self.client, site, head).run()

    # --- the proxy's own password ----------------------------------------------------------------

    def _authorised(self, head: RequestHead) -> bool:
        if self.token is None:
            return True
        password = (_password if len(head.block) <= _MEMORABLE else _password.__wrapped__)(head.block)
        # Compared in any case, and in constant time: a TCP listener may be in reach of other users.
        return hmac.compare_digest(password, self.token.encode())

    async def _challenge(self, head: RequestHead) -> bool:
        """Ask for the token; True when the client may try again on this connection, as git does."""
        again = head.keep_alive and head.framing is Framing.NONE
        headers = CHALLENGE if again else (*CHALLENGE, (b"Connection", b"close"))
        await self.stream.send(render_response(407, b"Proxy Authentication Required", headers))
        if not again:
            await linger(self.stream, self.setup.limits)
        return again

    # --- inside ----------------------------------------------------------------------------------

    async def _inside(self, authority: Authority, denial: Denial | None) -> None:
        """Exchanges with one authority. The first byte tells TLS from plain HTTP."""
        limits = self.setup.limits
        if not self.client.buffer:
            # Whom we are going to refuse gets less time to say what it wants.
            patience = limits.client_idle_timeout if denial is None else limits.tls_handshake_timeout
            self.stream.deadline = monotonic() + patience
            try:
                self.client.buffer = await self.stream.receive()
            finally:
                if not self.client.buffer and denial is not None:
                    self.setup.refused("CONNECT", str(authority), 0, denial=denial)
            if not self.client.buffer:
                return
        if self.client.buffer.startswith(IDENTIFICATION):
            await self._refuse_ssh(authority, denial)
            return
        scheme, protocol = "http", HTTP1
        if self.client.buffer.startswith(_TLS_HANDSHAKE):
            agreed = await self._terminate(authority, denial)
            if agreed is None:
                return
            scheme, protocol = "https", agreed
        site = Site.of(self.setup, scheme, authority, denial, protocol)
        if protocol == H2:
            await self._multiplexed(site)
            return
        while (head := await self._request(site)) is not None:
            if not await self._after(await Exchange(self.setup, self.client, site, head).run()):
                return

    async def _multiplexed(self, site: Site) -> None:
        """Streams instead of exchange after exchange. The library is loaded by the first who needs it."""
        from moat.proxy.h2_server import Server

        self.multiplexed = Server(self.setup, self.stream, site)
        if self.closing:
            self.multiplexed.finish()
        await self.multiplexed.run()

    async def _terminate(self, authority: Authority, denial: Denial | None) -> str | None:
        """TLS with a leaf of the run's CA; the protocol that it agreed on.

        A server name that is not the authority's gets no TLS at all: None.
        """
        ca, stream = self.setup.ca, self.stream
        stream.unread(self.client.buffer)
        self.client.buffer = b""
        stream.deadline = monotonic() + self.setup.limits.tls_handshake_timeout
        try:
            tls = await stream.start_tls(ca.server_context(authority.host), server_side=True)
        except StreamError as error:
            connection = error.connection if isinstance(error, TLSError) else None
            name = ca.rejected_sni(connection) if connection is not None else None
            if name is not None:
                denial = Denial(
                    code="authority",
                    reason=f"the TLS server name is {name}, the connection is for {authority}",
                    rule="CONNECT host, TLS server name and Host header must agree",
                )
            problem = "" if denial is not None else f"TLS with the client failed: {error}"
            self.setup.refused("CONNECT", str(authority), 0, denial=denial, error=problem)
            await stream.aclose()
            return None
        return tls.selected_alpn_protocol() or HTTP1

    async def _opaque(self, authority: Authority, greeting: bytes) -> None:
        """Bytes to a port of this machine, or SSH. The server may speak first."""
        tunnel = self.setup.tunnels.get(authority)
        started, clock, traffic = time(), monotonic(), Traffic()
        number = next(self.setup.numbers)
        status, denial = 0, None
        watches: list[Watch] = [SshWatch(tunnel)] if tunnel else []
        spending: Spending | None = None
        try:
            if accounts := self.setup.accounts.at(authority.host, authority.port):
                spending = Spending(accounts)
                watches.append(spending)
            upstream = await self.setup.upstream.dial(authority)
            try:
                await self.stream.send(greeting)
                status = 200
                self.stream.unread(self.client.buffer)
                self.client.buffer = b""
                idle = self.setup.limits.tunnel_idle_timeout
                await relay(self.stream, upstream, traffic, idle=idle, watches=watches)
            finally:
                upstream.close()
        except DeniedError as error:
            denial = error.denial
            await self._apologise(greeting, denial.reason, ssh=tunnel is not None)
        except (UpstreamError, StreamError) as error:
            traffic.error = str(error)
            if not status:
                await self._apologise(greeting, traffic.error, ssh=tunnel is not None)
        finally:
            self.setup.on_event(
                ExchangeFinished(
                    started=started,
                    duration=monotonic() - clock,
                    method="CONNECT",
                    url=str(authority),
                    status=status,
                    request_headers=(),
                    response_headers=(),
                    request_bytes=traffic.up,
                    response_bytes=traffic.down,
                    denial=denial or (spending.denial if spending is not None else None),
                    error=traffic.error,
                    id=number,
                )
            )

    async def _apologise(self, greeting: bytes, reason: str, *, ssh: bool) -> None:
        """Say why there is no connection, where clients show it; bytes without a protocol have no words."""
        with suppress(StreamError):
            if ssh:
                await self.stream.send(greeting + refusal(f"moat could not connect: {reason}"))
                await linger(self.stream, self.setup.limits)
            elif greeting:
                await self.stream.send(render_response(502, b"Bad Gateway", ((b"Content-Length", b"0"),)))

    async def _refuse_ssh(self, authority: Authority, denial: Denial | None) -> None:
        """SSH to a host that is not granted for it, whatever the policy says of the host's web pages."""
        if denial is None or (authority.host != HOST_NAME and denial.code == "policy"):
            denial = ssh_denial(authority.host, authority.port)
        self.setup.refused("CONNECT", str(authority), 0, denial=denial)
        await self.stream.send(refusal(f"moat refused this connection: {denial.reason}; {denial.hint}"))
        await linger(self.stream, self.setup.limits)

    # --- requests that are none, and the end ----------------------------------------------------

    async def _request(self, site: Site | None) -> RequestHead | None:
        """The next request head; None when the connection is over, also because of what was sent."""
        self.idle = not self.client.buffer
        try:
            return None if self.closing else await self.client.request()
        except MalformedError as error:
            answer = malformed(error) if site is None or site.denial is None else denied(site.denial)
            await self._refuse(site, answer)
            return None
        finally:
            self.idle = False

    def finish(self) -> None:
        """Serve no further request; a connection that waits for one is closed."""
        self.closing = True
        if self.multiplexed is not None:
            self.multiplexed.finish()
        elif self.idle:
            self.stream.close()

    async def _refuse(self, site: Site | None, answer: Answer) -> After:
        url = site.url(b"/") if site is not None else ""
        self.setup.refused("-", url, answer.status, denial=answer.denial)
        self.stream.deadline = monotonic() + self.setup.limits.close_timeout
        await self.stream.send(answer.wire())
        await linger(self.stream, self.setup.limits)
        return After.CLOSE

    async def _after(self, after: After) -> bool:
        if after is After.LINGER:
            await linger(self.stream, self.setup.limits)
        return after is After.KEEP


async def linger(stream: Stream, limits: Limits) -> None:
    """End our direction and drop what the client still sends, for a while.

    Closing while data waits to be read makes the kernel reset the connection, and the reset can overtake
    the answer that was sent just before.
    """
    stream.deadline = monotonic() + limits.close_timeout
    dropped = 0
    with suppress(StreamError):
        await stream.send_eof()
        while dropped < limits.linger and (data := await stream.receive()):
            dropped += len(data)


@lru_cache(maxsize=64)  # clients of one run say the same, once for each connection
def _password(block: bytes) -> bytes:
    """The password of Basic credentials, whatever the user name, or the token of Bearer ones; b"": none."""
    given = [value for name, value in split_fields(block) if name.lower() == b"proxy-authorization"]
    if len(given) != 1:
        return b""
    scheme, _, rest = given[0].partition(b" ")
    if scheme.lower() == b"bearer":
        return rest.strip()
    if scheme.lower() != b"basic":
        return b""
    try:
        return b64decode(rest.strip(), validate=True).partition(b":")[2]
    except (Base64Error, ValueError):
        return b""
