"""One exchange: a request judged, equipped, carried up, and its response carried back.

Read `Exchange._converse` from top to bottom: the order of the lines is the order of events. Nothing is
opened, resolved or fetched before policy has said yes, and no credential is asked for before
`equipment`. The two directions are in `upload` and `download`.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable
from enum import Enum
from time import monotonic, time

import anyio

from moat.authority import AuthorityError, parse_authority
from moat.errors import MoatError
from moat.proxy.answers import Answer, RefusedError, denied, failed, malformed
from moat.proxy.aws_errors import shaped
from moat.proxy.budget import Spending
from moat.proxy.decider import Desk, Question
from moat.proxy.download import Download
from moat.proxy.equipment import NOTHING, Equipment
from moat.proxy.events import Denial, DeniedError, ExchangeFinished, Undecided, Warned
from moat.proxy.fields import join_fields
from moat.proxy.h2_pool import begins_h2
from moat.proxy.head import LENGTH, NONE, ORIGIN, Form, MalformedError, RequestHead
from moat.proxy.http1 import split_absolute
from moat.proxy.leak_guard import Strangers, guard
from moat.proxy.logins import LONGEST as LONGEST_LOGIN, endpoint
from moat.proxy.mcp import Judgement, McpEndpoint, judge, unclear
from moat.proxy.mcp_filter import LoginNeededError, McpResponse
from moat.proxy.message import Body, MessageReader
from moat.proxy.request_body import FilteredBody
from moat.proxy.scrub import UnreadableBodyError
from moat.proxy.site import Setup, Site
from moat.proxy.site_rules import Equipped
from moat.proxy.stream import PausableStream, StreamError, StreamTimeoutError
from moat.proxy.tls import H2
from moat.proxy.trace import Shown
from moat.proxy.upload import GONE, Judged, Upload
from moat.proxy.upstream import Connection, UpstreamError

_IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"})  # RFC 9110 §9.2.2
_UNREADABLE = (
    "the request carries a credential, and this answer cannot be searched for it; ask the server for another "
    "format. The user can let such answers through: `unreadable: pass` under `network:` in agent.yaml"
)


class After(Enum):
    """What becomes of the client's connection after an exchange."""

    KEEP = "keep"  # the next request may follow
    CLOSE = "close"
    LINGER = "linger"  # close, but the client may still be sending and must not lose our answer


class Exchange:
    """State of one exchange; what its record will tell is collected on the way."""

    # What most exchanges leave as it is here.
    _read: Body | FilteredBody | None = None  # of a request that was looked into before it went up
    _upload: Upload | None = None
    _download: Download | None = None
    _spending: Spending | None = None  # None: no budget applies
    _after: After = After.CLOSE
    _undecided = False  # no rule of the policy allows it
    _equipment: Equipment | None = None  # its credentials
    # for the record
    _answered: Answer | None = None  # what we said ourselves
    _error = ""
    _warning: Denial | None = None

    def __init__(self, setup: Setup, client: MessageReader, site: Site, head: RequestHead) -> None:
        self._setup = setup
        self._client = client
        self._site = site
        self._head = head
        self._number = next(setup.numbers)
        self._target = head.target  # origin-form once judged
        self._mcp: McpEndpoint | None = setup.mcp.at(site.authority.host, site.authority.port)

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
        except RefusedError as refused:
            await self._answer(refused.answer)
        except DeniedError as refused:
            await self._answer(denied(refused.denial))
        except MalformedError as error:
            await self._answer(malformed(error) if error.blame == "client" else _bad_upstream(error))
        except UnreadableBodyError as error:
            await self._answer(failed(502, "unreadable", str(error), _UNREADABLE, retry=False))
        except LoginNeededError as needed:
            for grant in self._equipped.grants:
                self._setup.mcp.on_rejected(grant)
            server = needed.server
            reason = f"the MCP server {server.name} does not accept the request without a valid login"
            await self._answer(failed(403, "mcp-login", reason, server.login, retry=False))
        except UpstreamError as error:
            # A wrong certificate is still wrong in ten seconds; clients would try for minutes.
            again = error.code != "certificate"
            await self._answer(failed(error.status, error.code, error.reason, error.hint, retry=again))
        except StreamError as error:
            await self._broke(error)

    async def _converse(self) -> None:
        """The straight way of a request."""
        setup, client, site, mcp = self._setup, self._client, self._site, self._mcp
        response = site.response
        if site.plain and mcp is None:
            self._judge()
            judged: Judged = client.body(self._head, blame="client"), b""
        else:
            judged, lists = await self._admit()
            if mcp is not None:
                response = McpResponse(mcp, lists=lists, limit=setup.limits.mcp_message)
        equipment = self._equipment = Equipment(setup, site, self._number, self._head, self._read_body)
        wire, head, judged = await equipment.put_on(self._target, mcp, judged)
        upload = self._upload = Upload(client, head, wire, judged=judged, patience=self._patience)
        download = self._download = Download(
            client,
            self._head,
            equipment.equipped.secrets,
            response,
            spending=self._spending,
            swaps=equipment.swaps,
            unreadable=equipment.unreadable,
        )
        connection = await self._acquire()
        try:
            await self._carry(connection, upload, download)
        except (StreamError, MalformedError) as error:
            if not (self._may_repeat(connection, error) or self._was_not_understood(connection)):
                raise
            await self._carry(await self._acquire(fresh=True), upload, download)
        self._after = After.KEEP if download.keep else After.CLOSE if upload.done else After.LINGER

    # --- before anything leaves ------------------------------------------------------------------

    async def _admit(self) -> tuple[Judged, bool]:
        """All who may have a say: the request's body, and whether a list of tools will come back."""
        begun = await self._answer_login() if self._site.logins else None
        self._judge()
        if self._site.accounts:
            self._spending = self._spend()
            if begun is not None:
                self._meter(*begun)
        desk = self._setup.desk
        if desk is not None and (self._undecided or desk.every):
            await self._ask(desk)
        judged, lists = await self._judge_tools(self._mcp) if self._mcp else (begun, False)
        judged = judged or (self._body(), b"")
        strangers = self._site.rules.guard
        if strangers is not None and self._head.framing is not NONE:
            judged = self._guarded(*judged, strangers)
        return judged, lists

    async def _answer_login(self) -> Judged | None:
        """Answer a tool that renews a login of the run. Nothing leaves for it, so policy is not asked.

        The body, if it was read for nothing.
        """
        site, head = self._site, self._head
        if head.method != b"POST" or self._authority_mismatch() or self._setup.ready():
            return None
        path = endpoint(site.logins, self._target.decode())
        if path is None:
            return None
        body = self._body()
        read = await self._read_body(body, LONGEST_LOGIN)
        answer = await self._setup.logins.answer(site.logins[path], path, head.block, read)
        if answer is not None:
            raise RefusedError(answer)
        return body, read

    def _judge(self) -> None:
        """Every question that can be answered without opening, resolving or fetching anything."""
        setup, site, head = self._setup, self._site, self._head
        denial = site.denial or self._authority_mismatch() or setup.ready()
        if denial is None:
            denial = (
                self._policy_denial() or site.rules.leaks(head.target, head.block) or self._login_denial()
            )
        if denial is not None:
            # Who uses an HTTP/2 connection for several hosts then opens another (RFC 9110 §15.5.20).
            misdirected = site.protocol == H2 and denial.code == "authority"
            raise RefusedError(denied(denial, status=421 if misdirected else 0))

    def _policy_denial(self) -> Denial | None:
        policy, head = self._site.policy, self._head
        if policy.silent:
            return None
        denial = policy.exchange(self._site.scheme, head.method.decode(), self._target.decode(), head.headers)
        if isinstance(denial, Warned):
            self._warning = denial
            return None
        if isinstance(denial, Undecided) and self._setup.desk is not None:
            self._undecided = True
            return None
        return denial

    def _login_denial(self) -> Denial | None:
        """A client must not fetch a token of its own, whether its MCP server is configured or not."""
        target = self._target.decode()
        server = self._mcp or self._setup.mcp.asked(self._site.authority.host, target)
        return server.login_denial(target) if server is not None else None

    async def _ask(self, desk: Desk) -> None:
        """Put the request to the decider. Raises DeniedError; StreamError when the client has left."""
        site, head = self._site, self._head
        host, port = site.authority.host, site.authority.port
        question = Question(
            exchange=self._number,
            scheme=site.scheme,
            host=host,
            port=port,
            method=head.method.decode(),
            url=site.url(self._target),
            headers=Shown(head.block).fields,
            grants=site.rules.credentials,
            undecided=self._undecided,
        )
        await desk.ask(question, self._client.stream, at_eof=head.keep_alive)

    def _spend(self) -> Spending:
        """Begin to spend what the request costs. Raises DeniedError."""
        head = self._head
        length = head.length if head.framing is LENGTH else 0
        return Spending(self._site.accounts, head.size, length)

    def _authority_mismatch(self) -> Denial | None:
        """One authority: target, Host header and tunnel agree (invariant 4). Sets the origin-form target."""
        site, head = self._site, self._head
        if head.form is ORIGIN and head.host == site.host:
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
                raise RefusedError(
                    malformed(MalformedError("bad-host", str(error), 400, "client"))
                ) from error
            if found != site.authority:
                return _mismatch(f"the request is for {found}, its connection for {site.authority}")
        return None

    async def _judge_tools(self, endpoint: McpEndpoint) -> tuple[Judged | None, bool]:
        """What a request asks an MCP server for: its body, if it was read, and whether a list will come back.

        With a policy for its tools the body is read first.
        """
        head, limit = self._head, self._setup.limits.mcp_message
        if endpoint.policy is None:
            return None, False
        if head.upgrade:
            raise RefusedError(unclear(endpoint, "it leaves HTTP"))
        if head.framing is NONE:
            return None, False
        body = self._body()
        read = await self._read_body(body, limit)
        if len(read) <= limit:
            judgement = judge(endpoint, head.headers, read)
        elif endpoint.policy.audit:
            judgement = Judgement()
        else:
            raise RefusedError(unclear(endpoint, f"it has more than {limit} bytes"))
        for call in judgement.calls:
            if (unrecorded := self._setup.mcp.on_call(call)) is not None:
                raise RefusedError(denied(unrecorded))
        if judgement.answer is not None:
            raise RefusedError(judgement.answer)
        return (body, read), judgement.lists

    async def _read_body(self, body: Body | FilteredBody, limit: int) -> bytes:
        """The request's body, or its beginning when it is longer than `limit`."""
        client = self._client
        self._read = body
        if self._head.expect_continue:
            await client.stream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        read = bytearray()
        while not body.done and len(read) <= limit:
            client.stream.deadline = monotonic() + self._setup.limits.body_idle_timeout
            read += await body.next()
        client.stream.deadline = math.inf  # the client waits for us now
        return bytes(read)

    def _body(self) -> Body:
        """The request's body; its bytes are spent as they are read."""
        body = self._client.body(self._head, blame="client")
        if self._spending is not None:
            body.meter = self._spending.sent
        return body

    def _meter(self, body: Body | FilteredBody, read: bytes) -> None:
        """Spend what of a body was read before there was a budget to spend from. Raises DeniedError."""
        assert isinstance(body, Body)
        assert self._spending is not None
        body.meter = self._spending.sent
        self._spending.sent(len(read))

    def _guarded(self, body: Body | FilteredBody, start: bytes, strangers: Strangers) -> Judged:
        """A body for a host that no grant is for, searched on its way. Raises DeniedError if it cannot be."""
        assert isinstance(body, Body)
        return FilteredBody(body, start, guard(self._head.headers, strangers, self._setup.limits)), b""

    @property
    def _equipped(self) -> Equipped:
        return self._equipment.equipped if self._equipment is not None else NOTHING

    @property
    def _patience(self) -> float:
        """Seconds until the head of the response is late. A tool may work for long before it answers."""
        limits = self._client.limits
        return limits.response_head_timeout if self._mcp is None else limits.tunnel_idle_timeout

    # --- both directions -------------------------------------------------------------------------

    def _acquire(self, *, fresh: bool = False) -> Awaitable[Connection]:
        site = self._site
        return self._setup.upstream.acquire(site.scheme, site.authority, fresh=fresh, protocol=site.protocol)

    def _was_not_understood(self, connection: Connection) -> bool:
        """A server that speaks HTTP/2 without having agreed on it has taken our request for noise."""
        assert self._upload is not None
        if self._site.scheme != "https" or not begins_h2(connection.reader.buffer):
            return False
        self._setup.upstream.multiplexed.remember(connection.key, H2, only=True)
        return self._upload.whole

    def _may_repeat(self, connection: Connection, error: StreamError | MalformedError) -> bool:
        """A pooled connection that the server was just closing: nothing came back, doing it twice is safe."""
        assert self._upload is not None
        assert self._download is not None
        return (
            connection.reused
            and self._head.method in _IDEMPOTENT
            and self._upload.whole
            and not (self._upload.gone or self._download.heard or connection.reader.buffer)
            and not isinstance(error, (StreamTimeoutError, MalformedError))
        )

    async def _carry(self, connection: Connection, upload: Upload, download: Download) -> None:
        """The request up and the response down, at once: an answer may come before the body has gone.

        Whatever happens, the upstream connection is given back or closed.
        """
        stream = connection.stream
        # A client that announced its last request may finish its direction and still read the answer.
        upload.upstream = stream
        self._client.stream.when_gone(upload.leave, at_eof=self._head.keep_alive)
        stream.deadline = monotonic() + self._patience
        try:
            await upload.send_start(stream)
            if (
                not upload.done
                and isinstance(stream, PausableStream)
                and isinstance(self._client.stream, PausableStream)
            ):
                await upload.send_ahead(stream)
            if upload.done:
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
        failure: StreamError | MoatError | DeniedError | LoginNeededError | None = None
        reusable = False
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(upload.send_rest, connection.stream)
            try:
                reusable = await download.run(connection.reader, upload)
            except (StreamError, MalformedError, UnreadableBodyError, DeniedError, LoginNeededError) as error:
                failure = upload.fault or error
            tasks.cancel_scope.cancel()  # an answer that is complete needs no more of the request
        if failure is not None:
            raise failure
        return reusable

    # --- when it cannot be done ------------------------------------------------------------------

    async def _answer(self, answer: Answer) -> None:
        """Answer ourselves, or, when a response has begun, make it visible that it is cut."""
        if self._site.rules.signer is not None and answer.body:
            answer = shaped(answer, self._site.authority.host)
        self._answered, self._error = answer, answer.error
        if self._download is not None and self._download.begun:
            await self._truncate()
            return
        client = self._client
        body = self._upload.body if self._upload is not None else self._read
        done = self._head.framing is NONE if body is None else body.done
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
        status, fields = (answer.status, join_fields(answer.headers)) if answer is not None else (0, b"")
        up, down, messages, error, equipped = 0, 0, (0, 0), self._error, self._equipped
        denial = answer.denial if answer is not None else None
        if denial is None and self._spending is not None:
            denial = self._spending.denial
        if upload is not None:
            up = upload.body.size
        if download is not None:
            down = download.size
            if (traffic := download.traffic) is not None:
                up, messages, error = up + traffic.up, traffic.messages, error or traffic.error
            error = error or download.unchecked
            if download.begun:
                status, fields = download.status, download.fields
        self._setup.on_event(
            ExchangeFinished(
                started=started,
                duration=duration,
                method=self._head.method.decode("latin-1"),
                url=self._site.url(self._target),
                status=status,
                request_headers=Shown.again(self._head.block, equipped.names),
                response_headers=Shown(fields),
                request_bytes=up,
                response_bytes=down,
                messages=messages,
                grants=equipped.grants,
                denial=denial,
                warning=self._warning if denial is None else None,
                error=error,
                id=self._number,
                protocol=self._site.protocol,
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
