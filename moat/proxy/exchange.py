"""One exchange: a request judged, equipped, carried up, and its response carried back.

Read `Exchange._converse` from top to bottom: the order of the lines is the order of events. Nothing is
opened, resolved or fetched before policy has said yes, and a credential exists only between `_equip` and
the end of the exchange. The two directions are in `upload` and `download`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from time import monotonic, time
from types import MappingProxyType

import anyio

from moat.errors import MoatError
from moat.grants import Credential, CredentialSource
from moat.proxy import inject
from moat.proxy.address import Authority, AuthorityError, parse_authority
from moat.proxy.answers import Answer, denied, failed, malformed
from moat.proxy.certs import RunCA
from moat.proxy.download import Download, Unreadable
from moat.proxy.events import Denial, ExchangeFinished
from moat.proxy.http1 import (
    Form,
    Framing,
    Headers,
    MalformedError,
    RequestHead,
    forward_request_headers,
    split_absolute,
)
from moat.proxy.limits import Limits
from moat.proxy.mcp import Judgement, McpEndpoint, McpTable, judge, unclear
from moat.proxy.mcp_filter import LoginNeededError, McpResponse
from moat.proxy.message import Body, MessageReader
from moat.proxy.policy import Policy
from moat.proxy.scrub import UnreadableBodyError
from moat.proxy.ssh import SshTunnel
from moat.proxy.stream import StreamError, StreamTimeoutError
from moat.proxy.trace import shown
from moat.proxy.upload import GONE, Judged, Upload
from moat.proxy.upstream import AddressDeniedError, Connection, Upstream, UpstreamError

_IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"})  # RFC 9110 §9.2.2
_UNREADABLE = (
    "the request carries a credential, and this answer cannot be searched for it; ask the server for another "
    "format. The user can let such answers through: `unreadable: pass` under `network:` in agent.yaml"
)
_OPAQUE = frozenset({b"accept-encoding", b"range", b"if-range", b"sec-websocket-extensions"})


@dataclass(frozen=True, slots=True)
class Setup:
    """What all exchanges of a proxy share."""

    policy: Policy
    ca: RunCA
    table: inject.InjectionTable
    credentials: CredentialSource | None
    upstream: Upstream
    limits: Limits
    on_event: Callable[[ExchangeFinished], None]
    ready: Callable[[], Denial | None]
    on_use: Callable[[int, str, tuple[str, ...]], Denial | None]
    numbers: Iterator[int] = field(default_factory=lambda: count(1))  # of exchanges
    tunnels: Mapping[Authority, SshTunnel] = field(default_factory=lambda: MappingProxyType({}))
    mcp: McpTable = McpTable()  # noqa: RUF009 - empty and never changed
    unreadable: Unreadable = "withhold"


@dataclass(frozen=True, slots=True)
class Site:
    """Where an exchange goes, as CONNECT, capture or the request target said, and whether it may."""

    scheme: str  # `https`: inside TLS that we terminated; `http`
    authority: Authority
    host: bytes  # the Host field that clients usually send: equal to it, nothing has to be parsed
    denial: Denial | None = None  # everything that is sent here is answered with this

    @classmethod
    def of(cls, scheme: str, authority: Authority, denial: Denial | None) -> Site:
        return cls(scheme, authority, authority.host_header(scheme).encode(), denial)

    def url(self, target: bytes) -> str:
        """`target` as a URL; an absolute one that was refused before it was taken apart is one already."""
        if not target.startswith((b"/", b"*")):
            return target.decode("latin-1")
        return f"{self.scheme}://{self.host.decode()}{target.decode('latin-1')}"


class After(Enum):
    """What becomes of the client's connection after an exchange."""

    KEEP = "keep"  # the next request may follow
    CLOSE = "close"
    LINGER = "linger"  # close, but the client may still be sending and must not lose our answer


class _RefusedError(Exception):
    """Leaves the straight way with an answer of our own."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class Exchange:
    """State of one exchange; what its record will tell is collected on the way."""

    def __init__(self, setup: Setup, client: MessageReader, site: Site, head: RequestHead) -> None:
        self._setup = setup
        self._client = client
        self._site = site
        self._head = head
        self._number = next(setup.numbers)
        self._target = head.target  # origin-form once judged
        self._secrets: tuple[bytes, ...] = ()  # what must not come back
        self._hidden: frozenset[bytes] = frozenset()  # header names that carried a credential
        self._mcp: McpEndpoint | None = setup.mcp.at(site.authority.host, site.authority.port)
        self._read: Body | None = None  # of a request that was looked into before it went up
        self._upload: Upload | None = None
        self._download: Download | None = None
        self._after = After.CLOSE
        # for the record
        self._answered: Answer | None = None  # what we said ourselves
        self._grants: tuple[str, ...] = ()
        self._error = ""

    async def run(self) -> After:
        """Do the exchange, answer the client in every case, and record it."""
        started, clock = time(), monotonic()
        try:
            await self._converse_or_answer()
        except StreamError:
            self._drop(GONE)  # not even our answer arrived
        except anyio.get_cancelled_exc_class():
            self._drop("the proxy shut down")
            raise
        except Exception:
            self._drop("an error in moat")
            raise
        finally:
            self._client.stream.when_gone(None)
            self._record(started, monotonic() - clock)
        return self._after

    async def _converse_or_answer(self) -> None:
        """Whatever goes wrong becomes an answer of our own, or the end of the client's connection."""
        try:
            await self._converse()
        except _RefusedError as refused:
            await self._answer(refused.answer)
        except AddressDeniedError as refused:
            await self._answer(denied(refused.denial))
        except MalformedError as error:
            await self._answer(malformed(error) if error.blame == "client" else _bad_upstream(error))
        except UnreadableBodyError as error:
            await self._answer(failed(502, "unreadable", str(error), _UNREADABLE, retry=False))
        except LoginNeededError:
            assert self._mcp is not None
            for grant in self._grants:
                self._setup.mcp.on_rejected(grant)
            reason = f"the MCP server {self._mcp.name} does not accept the request without a valid login"
            await self._answer(failed(403, "mcp-login", reason, self._mcp.login, retry=False))
        except UpstreamError as error:
            # A wrong certificate is still wrong in ten seconds; clients would try for minutes.
            again = error.code != "certificate"
            await self._answer(failed(error.status, error.code, error.reason, error.hint, retry=again))
        except StreamError as error:
            await self._broke(error)

    async def _converse(self) -> None:
        """The straight way of a request."""
        self._judge()
        judged, response = await self._judge_tools(self._mcp) if self._mcp else (None, None)
        headers = await self._equip()
        upload = self._upload = Upload(
            self._client, self._head, self._target, headers, judged=judged, patience=self._patience
        )
        download = self._download = Download(
            self._client, self._head, self._secrets, response, unreadable=self._setup.unreadable
        )
        connection = await self._acquire()
        try:
            await self._carry(connection, upload, download)
        except StreamError as error:
            if not self._may_repeat(connection, error):
                raise
            await self._carry(await self._acquire(fresh=True), upload, download)
        self._after = After.KEEP if download.keep else After.CLOSE if upload.done else After.LINGER

    # --- before anything leaves ------------------------------------------------------------------

    def _judge(self) -> None:
        """Every question that can be answered without opening, resolving or fetching anything."""
        setup, site, head = self._setup, self._site, self._head
        denial = site.denial or self._authority_mismatch() or setup.ready()
        if denial is None:
            host, port = site.authority.host, site.authority.port
            method, target = head.method.decode(), self._target.decode()
            denial = setup.policy.exchange(
                host, port, site.scheme, method, target, headers=head.headers
            ) or setup.table.leaks(host, port, site.scheme, head.headers, head.target)
            if denial is None and self._mcp is not None:
                denial = self._mcp.login_denial(target)
        if denial is not None:
            raise _RefusedError(denied(denial))

    def _authority_mismatch(self) -> Denial | None:
        """One authority: target, Host header and tunnel agree (invariant 4). Sets the origin-form target."""
        site, head = self._site, self._head
        if head.form is Form.ORIGIN and head.host == site.host:
            return None
        named = [head.host] if head.host else []
        if head.form is Form.ABSOLUTE:
            scheme, authority, self._target = split_absolute(head.target)
            if scheme.decode() != site.scheme:
                return _mismatch(f"a request for {scheme.decode()}:// was sent over {site.scheme}")
            named.append(authority)
        elif head.form is Form.AUTHORITY:
            return _mismatch("CONNECT inside a tunnel")
        default = 443 if site.scheme == "https" else 80
        for name in named:
            try:
                found = parse_authority(name, default_port=default)
            except AuthorityError as error:
                raise _RefusedError(
                    malformed(MalformedError("bad-host", str(error), 400, "client"))
                ) from error
            if found != site.authority:
                return _mismatch(f"the request is for {found}, its connection for {site.authority}")
        return None

    async def _judge_tools(self, endpoint: McpEndpoint) -> tuple[Judged | None, McpResponse]:
        """What a request asks an MCP server for. With a policy for its tools the body is read first."""
        head, limit = self._head, self._setup.limits.mcp_message
        if endpoint.policy is None:
            return None, McpResponse(endpoint, lists=False, limit=limit)
        if head.upgrade:
            raise _RefusedError(unclear(endpoint, "it leaves HTTP"))
        if head.framing is Framing.NONE:
            return None, McpResponse(endpoint, lists=False, limit=limit)
        _, read = judged = await self._read_body(limit)
        if len(read) <= limit:
            judgement = judge(endpoint, head.headers, read)
        elif endpoint.policy.audit:
            judgement = Judgement()
        else:
            raise _RefusedError(unclear(endpoint, f"it has more than {limit} bytes"))
        for call in judgement.calls:
            if (unrecorded := self._setup.mcp.on_call(call)) is not None:
                raise _RefusedError(denied(unrecorded))
        if judgement.answer is not None:
            raise _RefusedError(judgement.answer)
        return judged, McpResponse(endpoint, judgement.lists, limit)

    async def _read_body(self, limit: int) -> Judged:
        """The request's body, or its beginning when it is longer than `limit`."""
        client, body = self._client, self._client.body(self._head, blame="client")
        self._read = body
        if self._head.expect_continue:
            await client.stream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        read = bytearray()
        while not body.done and len(read) <= limit:
            client.stream.deadline = monotonic() + self._setup.limits.body_idle_timeout
            read += await body.next()
        return body, bytes(read)

    async def _equip(self) -> Headers:
        """The headers that go upstream, with the credentials that policy and the table allow here."""
        head, authority = self._head, self._site.authority
        headers = forward_request_headers(head)
        if not head.host:
            headers = ((b"Host", self._site.host), *headers)
        if self._mcp is not None:
            headers = self._mcp.readdressed(headers)
            if self._mcp.policy is not None:
                headers = _inspectable(headers)
        rules = self._setup.table.for_host(authority.host, authority.port, self._site.scheme)
        if not rules:
            return headers
        try:
            plan = inject.make_plan(rules, headers)
            credentials = {name: await self._credential(name) for name in plan.credentials}
            injected = inject.carry_out(plan, credentials)
        except MoatError as error:
            raise _RefusedError(
                failed(502, "credential", str(error), error.hint or "", retry=False)
            ) from error
        if injected.grants:
            # The last moment before a credential can leave: what cannot be recorded does not happen.
            refusal = self._setup.on_use(self._number, str(authority), injected.grants)
            if refusal is not None:
                raise _RefusedError(denied(refusal))
        self._secrets, self._grants, self._hidden = injected.secrets, injected.grants, injected.names
        return _inspectable(injected.headers) if self._secrets else injected.headers

    async def _credential(self, name: str) -> Credential:
        source = self._setup.credentials
        if source is None:
            raise MoatError(f"no credential source for grant {name}")
        return await source.credential(name)  # keeps a deadline of its own: its owner may be asked to unlock

    @property
    def _patience(self) -> float:
        """Seconds until the head of the response is late. A tool may work for long before it answers."""
        limits = self._setup.limits
        return limits.response_head_timeout if self._mcp is None else limits.tunnel_idle_timeout

    # --- both directions -------------------------------------------------------------------------

    async def _acquire(self, *, fresh: bool = False) -> Connection:
        return await self._setup.upstream.acquire(self._site.scheme, self._site.authority, fresh=fresh)

    def _may_repeat(self, connection: Connection, error: StreamError) -> bool:
        """A pooled connection that the server was just closing: nothing came back, doing it twice is safe."""
        assert self._upload is not None
        assert self._download is not None
        return (
            connection.reused
            and self._head.method in _IDEMPOTENT
            and self._upload.whole
            and not (self._upload.gone or self._download.heard or connection.reader.buffer)
            and not isinstance(error, StreamTimeoutError)
        )

    async def _carry(self, connection: Connection, upload: Upload, download: Download) -> None:
        """The request up and the response down, at once: an answer may come before the body has gone.

        Whatever happens, the upstream connection is given back or closed.
        """
        stream = connection.stream
        # A client that announced its last request may finish its direction and still read the answer.
        self._client.stream.when_gone(lambda: upload.leave(stream), at_eof=self._head.keep_alive)
        stream.deadline = monotonic() + self._patience
        try:
            await upload.send_start(stream)
            if upload.whole:
                reusable = await download.run(connection.reader, upload)
            else:
                reusable = await self._both_ways(connection, upload, download)
        except BaseException:
            stream.abort()
            raise
        if reusable:
            self._setup.upstream.release(connection)
        elif upload.done:
            stream.close()
        else:
            stream.abort()  # half a request must not look like the end of a whole one

    @staticmethod
    async def _both_ways(connection: Connection, upload: Upload, download: Download) -> bool:
        failure: StreamError | MoatError | LoginNeededError | None = None
        reusable = False
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(upload.send_rest, connection.stream)
            try:
                reusable = await download.run(connection.reader, upload)
            except (StreamError, MalformedError, UnreadableBodyError, LoginNeededError) as error:
                failure = upload.fault or error
            tasks.cancel_scope.cancel()  # an answer that is complete needs no more of the request
        if failure is not None:
            raise failure
        return reusable

    # --- when it cannot be done ------------------------------------------------------------------

    async def _answer(self, answer: Answer) -> None:
        """Answer ourselves, or, when a response has begun, make it visible that it is cut."""
        self._answered, self._error = answer, answer.error
        if self._download is not None and self._download.begun:
            await self._truncate()
            return
        client = self._client
        body = self._upload.body if self._upload is not None else self._read
        done = self._head.framing is Framing.NONE if body is None else body.done
        self._after = After.CLOSE if done and not client.buffer else After.LINGER
        client.stream.deadline = monotonic() + self._setup.limits.body_idle_timeout
        await client.stream.send(answer.wire(with_body=self._head.method != b"HEAD"))

    async def _broke(self, error: StreamError) -> None:
        """One of the two connections broke: find out which, and tell the other side."""
        host = self._site.authority.host
        if self._client.stream.broken or (self._upload is not None and self._upload.gone):
            self._drop(GONE)
        elif self._download is not None and self._download.begun:
            self._error = f"{host}: {error}"
            await self._truncate()
        elif isinstance(error, StreamTimeoutError):
            await self._answer(failed(504, "timeout", f"{host} did not answer in time"))
        else:
            await self._answer(failed(502, "upstream", f"{host}: {error}"))

    async def _truncate(self) -> None:
        """End the client's connection so that it cannot take what it has for the whole.

        TLS without its goodbye, a chunk or byte that is missing: all that came is delivered first. Only a
        plain body that ends with the connection needs a reset, which may overtake data.
        """
        self._after = After.CLOSE
        if self._site.scheme == "http" and self._download is not None and self._download.until_close:
            self._client.stream.abort()
        await self._client.stream.aclose(goodbye=False)

    def _drop(self, reason: str) -> None:
        self._error = self._error or reason
        self._after = After.CLOSE
        self._client.stream.abort()

    # --- the record ------------------------------------------------------------------------------

    def _record(self, started: float, duration: float) -> None:
        upload, download, answer = self._upload, self._download, self._answered
        status, headers = (answer.status, answer.headers) if answer is not None else (0, ())
        up, down, error = 0, 0, self._error
        if upload is not None:
            up = upload.body.size
        if download is not None:
            up, down, error = up + download.traffic.up, download.size, error or download.traffic.error
            error = error or download.unchecked
            if download.begun:
                status, headers = download.status, download.headers
        self._setup.on_event(
            ExchangeFinished(
                started=started,
                duration=duration,
                method=self._head.method.decode("latin-1"),
                url=self._site.url(self._target),
                status=status,
                request_headers=shown(self._head.headers, self._hidden),
                response_headers=shown(headers),
                request_bytes=up,
                response_bytes=down,
                grants=self._grants,
                denial=answer.denial if answer is not None else None,
                error=error,
                id=self._number,
            )
        )


def _mismatch(reason: str) -> Denial:
    return Denial(
        code="authority",
        reason=reason,
        rule="CONNECT host, TLS server name and Host header must agree",
        hint="send each request over a connection of its own host",
    )


def _bad_upstream(error: MalformedError) -> Answer:
    return failed(502, "malformed", f"the response was malformed: {error.reason}")


def _inspectable(headers: Headers) -> Headers:
    """Headers of a request with a credential: its response has to be readable, whole and in order.

    A range could cut an echoed secret in two, and a WebSocket extension would compress it.
    """
    kept = tuple(field for field in headers if field[0].lower() not in _OPAQUE)
    return (*kept, (b"Accept-Encoding", b"identity"))
