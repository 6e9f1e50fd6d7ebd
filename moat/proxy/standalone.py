"""A proxy with all that it needs: CA, loopback listener, upstream, record, events.

    async with Proxy.open(credentials={"demo": token}, rules=[rule]) as proxy:
        ...  # HTTPS_PROXY=proxy.url, trust in proxy.certificate_pem

It listens on 127.0.0.1 only, and asks for a password that is in `url`: other users of the machine reach the
port as well.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import anyio
from anyio.abc import TaskGroup

from moat.arguments import check, check_range
from moat.errors import ArgumentError, GrantError, one_error
from moat.grants import Credential, CredentialInfo, CredentialKind, CredentialSource, Rule, Secret
from moat.journal import LineWriter
from moat.proxy.budget import Budget
from moat.proxy.certs import RunCA
from moat.proxy.decider import Decider
from moat.proxy.dialling import UpstreamOptions
from moat.proxy.events import ExchangeFinished
from moat.proxy.feed import Feed, Reader
from moat.proxy.limits import Limits
from moat.proxy.policy import Policy
from moat.proxy.server import Proxy, always_ready
from moat.proxy.trace import Trace
from moat.proxy.upstream import Upstream
from moat.verification import client_context

_BACKLOG = 512
_BUFFER = 1024


class FixedCredentials:
    """A CredentialSource with what it was given: name -> secret."""

    def __init__(self, given: Mapping[str, str]) -> None:
        now = dt.datetime.now(dt.UTC)
        self._found = {
            name: Credential(CredentialInfo(name, CredentialKind.TOKEN, (), now), Secret(secret))
            for name, secret in given.items()
        }

    async def credential(self, name: str) -> Credential:
        """Raises GrantError for a name that was not given."""
        if name not in self._found:
            raise GrantError(f"no credential {name!r} was given to this proxy")
        return self._found[name]


class OpenProxy:
    """A proxy that listens. Made by `Proxy.open`."""

    def __init__(self, proxy: Proxy, ca: RunCA, port: int, token: str | None, feed: Feed) -> None:
        self.proxy = proxy
        self.port = port
        self.token = token  # the password; any user name will do
        self.certificate_pem = ca.certificate_pem  # what clients have to trust
        self._feed = feed

    @property
    def url(self) -> str:
        """For HTTP_PROXY and HTTPS_PROXY, password included."""
        user = f"moat:{quote(self.token, safe='')}@" if self.token is not None else ""
        return f"http://{user}127.0.0.1:{self.port}"

    def events(self, *, buffer: int = _BUFFER) -> Reader:
        """What happens from now on, as an async iterator of `ExchangeFinished` and `Missed`.

        It ends with the proxy. A reader that does not keep up loses what does not fit in its buffer, and is
        told how many events that were; the proxy waits for nobody.
        """
        return self._feed.reader(buffer)

    def client_context(self) -> ssl.SSLContext:
        """A client's context that trusts the system's roots and this proxy."""
        context = client_context()
        context.load_verify_locations(cadata=self.certificate_pem.decode())
        return context


@contextlib.asynccontextmanager
async def open_proxy(
    *,
    port: int,
    token: str | bool,
    policy: Policy,
    rules: Sequence[Rule],
    credentials: CredentialSource | Mapping[str, str],
    budgets: Sequence[Budget],
    decider: Decider | None,
    upstream: UpstreamOptions,
    limits: Limits,
    record: str | os.PathLike[str] | None,
    grace: float,
) -> AsyncIterator[OpenProxy]:
    """See `Proxy.open`."""
    for name, value, kind in (
        ("port", port, int),
        ("token", token, str | bool),
        ("policy", policy, Policy),
        ("rules", rules, Sequence[Rule]),
        ("budgets", budgets, Sequence[Budget]),
        ("decider", decider, Decider | None),
        ("upstream", upstream, UpstreamOptions),
        ("limits", limits, Limits),
        ("record", record, str | os.PathLike | None),
        ("grace", grace, float),
    ):
        check(name, value, kind)
    check_range("port", port, 0, 65535)
    check_range("grace", grace, 0)
    password = token if isinstance(token, str) else secrets.token_urlsafe(24) if token else None
    source = _source(credentials)
    ca, feed = RunCA.generate("proxy"), Feed()
    with one_error(), contextlib.ExitStack() as stack:
        trace = _trace(record, stack)
        way_out = Upstream(upstream, limits=limits)
        proxy = Proxy(
            policy=policy,
            ca=ca,
            rules=rules,
            credentials=source,
            upstream=way_out,
            on_event=_teller(feed, trace),
            limits=limits,
            token=password,
            ready=trace.ready if trace is not None else always_ready,
            budgets=budgets,
            decider=decider,
        )
        listener = stack.enter_context(socket.create_server(("127.0.0.1", port), backlog=_BACKLOG))
        async with anyio.create_task_group() as tasks:
            await _serve(tasks, proxy, listener, trace)
            try:
                yield OpenProxy(proxy, ca, listener.getsockname()[1], password, feed)
            finally:
                with anyio.CancelScope(shield=True):  # bounded by `grace`
                    await proxy.aclose(grace)
                    await way_out.aclose()
                feed.close()
                tasks.cancel_scope.cancel()


def _source(given: CredentialSource | Mapping[str, str]) -> CredentialSource:
    if isinstance(given, Mapping):
        check("credentials", given, Mapping[str, str])
        return FixedCredentials(given)
    if not callable(getattr(given, "credential", None)):
        raise ArgumentError(
            f"credentials must be a mapping or a CredentialSource, not {type(given).__name__}"
        )
    return given


def _trace(record: str | os.PathLike[str] | None, stack: contextlib.ExitStack) -> Trace | None:
    if record is None:
        return None
    writer = LineWriter(Path(record))
    stack.callback(writer.close)
    return Trace(writer)


def _teller(feed: Feed, trace: Trace | None) -> Callable[[ExchangeFinished], None]:
    if trace is None:
        return feed.put

    def tell(event: ExchangeFinished) -> None:
        trace.add(event)
        feed.put(event)

    return tell


async def _serve(tasks: TaskGroup, proxy: Proxy, listener: socket.socket, trace: Trace | None) -> None:
    if trace is not None:
        await tasks.start(trace.run)
    await tasks.start(proxy.serve, listener)
