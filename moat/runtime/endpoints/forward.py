"""One exchange with an endpoint: request up, response down, at once, nothing collected.

Framing, hop-by-hop fields, upgrades and interim answers are the proxy's (`moat.proxy`): the same strict
parser judges what a browser sends to an endpoint and what a sandbox answers.
"""

from __future__ import annotations

import math
import socket
from contextlib import suppress
from time import monotonic

import anyio

from moat.dataclass import dataclass
from moat.proxy.download import Download
from moat.proxy.events import DeniedError
from moat.proxy.fields import Headers
from moat.proxy.head import MalformedError, RequestHead
from moat.proxy.limits import Limits
from moat.proxy.message import MessageReader
from moat.proxy.render import forward_request_headers, render_request
from moat.proxy.stream import Stream, StreamError, StreamTimeoutError, Watch, open_stream
from moat.proxy.upload import Upload
from moat.runtime.endpoints.ingress import CONNECTED, FAILED, WORD

# Both ends are on this machine: silence means that nothing happens, not that somebody died.
LIMITS = Limits(body_idle_timeout=86400.0, tunnel_idle_timeout=86400.0)
_DIAL_SECONDS = 15.0
_SILENT = "the run does not answer"
_IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"})
_FORWARDED = frozenset({
    b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port",
    b"x-real-ip",
})  # fmt: skip


class DownError(Exception):
    """The server in the sandbox cannot be reached, or did not answer; `str()` says how."""


class LostError(Exception):
    """A response had begun and could not be finished, or the client has gone: nothing can be said."""


@dataclass(frozen=True, slots=True)
class Sender:
    """Where a request came from, as the server in the sandbox is told."""

    address: str
    scheme: str

    def headers(self, head: RequestHead) -> Headers:
        """What goes to the server. What the client says of former hops is not believed."""
        kept = [field for field in forward_request_headers(head) if field[0].lower() not in _FORWARDED]
        return (
            *kept,
            (b"X-Forwarded-For", self.address.encode()),
            (b"X-Forwarded-Proto", self.scheme.encode()),
            (b"X-Forwarded-Host", head.host),
        )


class Line:
    """The connection to one endpoint, for one connection of a browser: kept while both want to."""

    def __init__(self, path: str, watch: Watch) -> None:
        self._path = path
        self._watch = watch
        self._idle: MessageReader | None = None

    async def exchange(self, client: MessageReader, head: RequestHead, headers: Headers) -> Download:
        """Carry one exchange; tells of it what `Download` does. Raises DownError, LostError, MalformedError.

        MalformedError is raised for a client's fault only, and before anything was answered.
        """
        upload = Upload(client, head, render_request(head.method, head.target, headers))
        download = Download(client, head, ())
        try:
            if (kept := self._reusable(head, upload)) is not None:
                try:
                    await self._carry(kept, client, head, upload, download)
                    return download
                except StreamError:
                    # The server was just closing it: nothing came back, and asking twice does no harm.
                    if download.heard or upload.gone or client.stream.broken:
                        raise
            await self._carry(await self._connect(), client, head, upload, download)
        except MalformedError as error:
            if error.blame == "client" and not download.begun:
                raise
            raise _lost(download, upload, error) from error
        except StreamError as error:
            raise _lost(download, upload, error) from error
        return download

    def _reusable(self, head: RequestHead, upload: Upload) -> MessageReader | None:
        """The connection of the last exchange, for a request that can be sent twice if it has just closed."""
        kept, self._idle = self._idle, None
        if kept is None:
            return None
        if head.method in _IDEMPOTENT and upload.whole and kept.stream.quiet():
            return kept
        kept.stream.close()
        return None

    async def _connect(self) -> MessageReader:
        """Raises DownError when nothing answers behind the socket."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(self._path)
        except OSError as error:  # a full backlog as well: connecting to a unix socket does not wait
            sock.close()
            raise DownError(_SILENT) from error
        stream = await open_stream(sock, self._watch)
        try:
            rest = await _greeted(stream)
        except BaseException:
            stream.abort()
            raise
        reader = MessageReader(stream, LIMITS)
        reader.buffer = rest
        return reader

    async def _carry(
        self,
        upstream: MessageReader,
        client: MessageReader,
        head: RequestHead,
        upload: Upload,
        download: Download,
    ) -> None:
        stream = upstream.stream
        upload.upstream = stream
        client.stream.when_gone(upload.leave, at_eof=head.keep_alive)
        stream.deadline = monotonic() + LIMITS.response_head_timeout
        try:
            await upload.send_start(stream)
            if upload.whole:
                reusable = await download.run(upstream, upload)
            else:
                reusable = await _both_ways(upstream, upload, download)
        except BaseException:
            stream.abort()
            raise
        finally:
            client.stream.when_gone(None)
        if reusable:
            stream.deadline = math.inf
            self._idle = upstream
        elif upload.done:
            stream.close()
        else:
            stream.abort()

    def close(self) -> None:
        if self._idle is not None:
            self._idle.stream.close()
            self._idle = None


async def _greeted(stream: Stream) -> bytes:
    """Hear whether the run has connected the server; what the server has said already."""
    stream.deadline = monotonic() + _DIAL_SECONDS
    data = b""
    try:
        while b"\n" not in data and len(data) < WORD and (more := await stream.receive()):
            data += more
    except StreamError as error:
        raise DownError(_SILENT) from error
    stream.deadline = math.inf
    word, end, rest = data.partition(b"\n")
    if word != CONNECTED or not end:
        raise DownError(word.removeprefix(FAILED).decode("utf-8", "replace") or _SILENT)
    return rest


async def _both_ways(upstream: MessageReader, upload: Upload, download: Download) -> bool:
    """The rest of the request and the answer, which may come before all of it has gone."""
    failure: StreamError | MalformedError | DeniedError | None = None
    reusable = False
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(upload.send_rest, upstream.stream)
        try:
            reusable = await download.run(upstream, upload)
        except (StreamError, MalformedError) as error:
            failure = upload.fault or error
        tasks.cancel_scope.cancel()  # an answer that is complete needs no more of the request
    if failure is not None:
        raise failure
    return reusable


def _lost(download: Download, upload: Upload, error: Exception) -> DownError | LostError:
    if download.begun or upload.gone:
        return LostError(str(error))
    if isinstance(error, StreamTimeoutError):
        return DownError("the server did not answer in time")
    if isinstance(error, MalformedError):
        return DownError(f"the answer is not HTTP ({error})")
    return DownError("the server closed the connection without an answer")


def client_address(sock: socket.socket) -> str:
    with suppress(OSError):
        return str(sock.getpeername()[0])
    return "127.0.0.1"
