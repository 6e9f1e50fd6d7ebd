"""One exchange: a request judged, equipped, carried up, and its response carried back.

Read `Exchange._converse` from top to bottom: the order of the lines is the order of events. Nothing is
opened, resolved or fetched before policy has said yes, and no credential is asked for before
`equipment`. What is asked before is in `admission`, the two directions are in `upload` and `download`.
"""

from __future__ import annotations

from collections.abc import Awaitable
from enum import Enum
from time import monotonic, time

import anyio

from moat.errors import MoatError
from moat.proxy.admission import Admission
from moat.proxy.answers import Answer, RefusedError, denied, failed, malformed
from moat.proxy.aws_errors import shaped
from moat.proxy.dialling import UpstreamError
from moat.proxy.download import Download
from moat.proxy.equipment import NOTHING, Equipment
from moat.proxy.events import DeniedError, ExchangeFinished
from moat.proxy.fields import join_fields
from moat.proxy.h2_pool import begins_h2
from moat.proxy.head import NONE, MalformedError, RequestHead
from moat.proxy.mcp_filter import LoginNeededError
from moat.proxy.message import MessageReader
from moat.proxy.scrub import UnreadableBodyError
from moat.proxy.site import Setup, Site
from moat.proxy.site_rules import Equipped
from moat.proxy.stream import StreamError, StreamTimeoutError, UntakenError
from moat.proxy.tls import H2
from moat.proxy.trace import Shown
from moat.proxy.upload import GONE, Upload
from moat.proxy.upstream import Connection

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
    _upload: Upload | None = None
    _download: Download | None = None
    _after: After = After.CLOSE
    _equipment: Equipment | None = None  # its credentials
    # for the record
    _answered: Answer | None = None  # what we said ourselves
    _error = ""

    def __init__(self, setup: Setup, client: MessageReader, site: Site, head: RequestHead) -> None:
        self._setup = setup
        self._client = client
        self._site = site
        self._head = head
        self._number = next(setup.numbers)
        self._admission = Admission(setup, client, site, head, self._number)

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
            self._admission.let_go()
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
        setup, client, site, admission = self._setup, self._client, self._site, self._admission
        judged, response = await admission.admit()
        equipment = self._equipment = Equipment(setup, site, self._number, self._head, admission.read_body)
        wire, head, judged = await equipment.put_on(admission.target, admission.mcp, judged)
        upload = self._upload = Upload(client, head, wire, judged=judged, patience=self._patience)
        download = self._download = Download(
            client,
            self._head,
            equipment.equipped.secrets,
            response,
            spending=admission.spending,
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

    @property
    def _equipped(self) -> Equipped:
        return self._equipment.equipped if self._equipment is not None else NOTHING

    @property
    def _patience(self) -> float:
        """Seconds until the head of the response is late. A tool may work for long before it answers."""
        limits = self._client.limits
        return limits.response_head_timeout if self._admission.mcp is None else limits.tunnel_idle_timeout

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
        """Nothing came back, and the server took nothing or was just closing, when doing it twice is safe."""
        upload, download = self._upload, self._download
        assert upload is not None
        assert download is not None
        if not upload.whole or upload.gone or download.heard or connection.reader.buffer:
            return False
        return isinstance(error, UntakenError) or (
            connection.reused
            and self._head.method in _IDEMPOTENT
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
        body = self._upload.body if self._upload is not None else self._admission.read
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
        admission, upload, download, answer = self._admission, self._upload, self._download, self._answered
        status, fields = (answer.status, join_fields(answer.headers)) if answer is not None else (0, b"")
        up, down, messages, error, equipped = 0, 0, (0, 0), self._error, self._equipped
        denial = answer.denial if answer is not None else None
        if denial is None and admission.spending is not None:
            denial = admission.spending.denial
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
                url=self._site.url(admission.target),
                status=status,
                request_headers=Shown.again(self._head.block, equipped.names),
                response_headers=Shown(fields),
                request_bytes=up,
                response_bytes=down,
                messages=messages,
                grants=equipped.grants,
                denial=denial,
                warning=admission.warning if denial is None else None,
                error=error,
                id=self._number,
                protocol=self._site.protocol,
            )
        )


def _bad_upstream(error: MalformedError) -> Answer:
    return failed(502, "malformed", f"the response was malformed: {error.reason}")
