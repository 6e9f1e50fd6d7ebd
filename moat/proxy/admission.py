"""What is asked about a request before anything is opened, resolved or fetched for it.

Read `Admission._ask_all` from top to bottom: who may answer instead, who may refuse, who sees the body.
"""

from __future__ import annotations

import math
from time import monotonic

from moat.authority import AuthorityError, parse_authority
from moat.proxy.answers import RefusedError, denied, failed, malformed
from moat.proxy.budget import Spending
from moat.proxy.decider import Desk, Question
from moat.proxy.events import Denial, Undecided, Warned
from moat.proxy.head import LENGTH, NONE, ORIGIN, Form, MalformedError, RequestHead
from moat.proxy.http1 import split_absolute
from moat.proxy.leak_guard import Strangers, guard
from moat.proxy.logins import LONGEST as LONGEST_LOGIN, endpoint
from moat.proxy.mcp import Judgement, McpEndpoint, judge, unclear
from moat.proxy.mcp_filter import McpResponse
from moat.proxy.message import Body, MessageReader
from moat.proxy.request_body import FilteredBody
from moat.proxy.site import Setup, Site
from moat.proxy.tls import H2
from moat.proxy.trace import Shown
from moat.proxy.upload import Judged


class Admission:
    """The questions about one request; what was found out on the way stays here for its record."""

    read: Body | FilteredBody | None = None  # the body, when it was looked into before it went up
    spending: Spending | None = None  # None: no budget applies
    warning: Denial | None = None
    _undecided = False  # no rule of the policy allows it
    _held = 0  # bytes of the body that are in memory
    _answer_held = 0  # and, at most, of the answer

    def __init__(
        self, setup: Setup, client: MessageReader, site: Site, head: RequestHead, number: int
    ) -> None:
        """`number` is the exchange's."""
        self._setup, self._client, self._site = setup, client, site
        self._head, self._number = head, number
        self.target = head.target  # origin-form once judged
        self.mcp = setup.mcp.at(site.authority.host, site.authority.port)

    async def admit(self) -> tuple[Judged, McpResponse]:
        """The request's body, as far as somebody has read it, and how its answer is looked at.

        Raises RefusedError, DeniedError, MalformedError, StreamError.
        """
        if self._site.plain and self.mcp is None:
            self._judge()
            return (self._client.body(self._head, blame="client"), b""), self._site.response
        judged, lists = await self._ask_all()
        if self.mcp is None:
            return judged, self._site.response
        limit = self._setup.limits.mcp_message
        return judged, McpResponse(self.mcp, lists=lists, limit=limit, room=self._has_room)

    async def _ask_all(self) -> tuple[Judged, bool]:
        """All who may have a say: the request's body, and whether a list of tools will come back."""
        begun = await self._answer_login() if self._site.logins else None
        self._judge()
        if self._site.accounts:
            self.spending = self._spend()
            if begun is not None:
                self._meter(*begun)
        desk = self._setup.desk
        if desk is not None and (self._undecided or desk.every):
            await self._ask(desk)
        judged, lists = await self._judge_tools(self.mcp) if self.mcp else (begun, False)
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
        path = endpoint(site.logins, self.target.decode())
        if path is None:
            return None
        body = self._body()
        read = await self.read_body(body, LONGEST_LOGIN)
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
        denial = policy.exchange(self._site.scheme, head.method.decode(), self.target.decode(), head.headers)
        if isinstance(denial, Warned):
            self.warning = denial
            return None
        if isinstance(denial, Undecided) and self._setup.desk is not None:
            self._undecided = True
            return None
        return denial

    def _login_denial(self) -> Denial | None:
        """A client must not fetch a token of its own, whether its MCP server is configured or not."""
        target = self.target.decode()
        server = self.mcp or self._setup.mcp.asked(self._site.authority.host, target)
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
            url=site.url(self.target),
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
            scheme, authority, self.target = split_absolute(head.target)
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
        read = await self.read_body(body, limit)
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

    async def read_body(self, body: Body | FilteredBody, limit: int) -> bytes:
        """The request's body, or its beginning when it is longer than `limit`. Raises RefusedError."""
        client = self._client
        self.read = body
        if self._head.expect_continue:
            await client.stream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        read = bytearray()
        while not body.done and len(read) <= limit:
            client.stream.deadline = monotonic() + self._setup.limits.body_idle_timeout
            read += self._hold(await body.next())
        client.stream.deadline = math.inf  # the client waits for us now
        return bytes(read)

    def _hold(self, piece: bytes) -> bytes:
        """`piece`, which stays in memory until `let_go`."""
        if not self._setup.held.take(len(piece)):
            reason = f"it would hold more than {self._setup.limits.held} bytes of requests"
            raise RefusedError(failed(503, "busy", reason, "send fewer large requests at one time"))
        self._held += len(piece)
        return piece

    def _has_room(self, size: int) -> bool:
        """Whether so much of the answer may be in memory."""
        more = max(0, size - self._answer_held)
        if not self._setup.held.take(more):
            return False
        self._answer_held += more
        return True

    def let_go(self) -> None:
        """The exchange is over."""
        self._setup.held.give_back(self._held + self._answer_held)
        self._held = self._answer_held = 0

    def _body(self) -> Body:
        """The request's body; its bytes are spent as they are read."""
        body = self._client.body(self._head, blame="client")
        if self.spending is not None:
            body.meter = self.spending.sent
        return body

    def _meter(self, body: Body | FilteredBody, read: bytes) -> None:
        """Spend what of a body was read before there was a budget to spend from. Raises DeniedError."""
        assert isinstance(body, Body)
        assert self.spending is not None
        body.meter = self.spending.sent
        self.spending.sent(len(read))

    def _guarded(self, body: Body | FilteredBody, start: bytes, strangers: Strangers) -> Judged:
        """A body for a host that no grant is for, searched on its way. Raises DeniedError if it cannot be."""
        assert isinstance(body, Body)
        return FilteredBody(body, start, guard(self._head.headers, strangers, self._setup.limits)), b""


def _mismatch(reason: str) -> Denial:
    return Denial(
        code="authority",
        reason=reason,
        rule="CONNECT host, TLS server name and Host header must agree",
        hint="send each request over a connection of its own host",
    )
