"""A proxy under test runs in a thread of its own, on each event loop; tests are plain blocking code.

The tests of streams are coroutines and use the anyio plugin's `anyio_backend` instead.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from moat.errors import GrantError
from moat.grants import Credential, CredentialInfo, CredentialKind, InjectionRule, Secret
from moat.proxy import Denial, ExchangeFinished, Limits, Policy, Proxy, RunCA, Upstream, UpstreamOptions
from moat.proxy.download import Unreadable
from moat.proxy.mcp import McpTable
from moat.proxy.ssh import SshTunnel
from tests.proxy.peers import Origin, Script, Wire, client_context, echo, world

LOOPS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}
SECRET = "sk-real-0123456789abcdefghijklmnop"
PLACEHOLDER = "sk-moat-placeholder-xyz"


@pytest.fixture(params=list(LOOPS.values()), ids=list(LOOPS))
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param


@dataclass
class Credentials:
    """A CredentialSource that counts what it is asked for."""

    secrets: Mapping[str, str]
    asked: list[str] = field(default_factory=list)
    failure: Exception | None = None

    async def credential(self, name: str) -> Credential:
        self.asked.append(name)
        if self.failure is not None:
            raise self.failure
        if name not in self.secrets:
            raise GrantError(f"grant {name} is missing", hint=f"moat grant {name}")
        info = CredentialInfo(name, CredentialKind.TOKEN, ("api.test",), dt.datetime.now(dt.UTC))
        return Credential(info, Secret(self.secrets[name]))


RULE = InjectionRule(credential="demo", hosts=("api.test",), header="authorization", placeholder=PLACEHOLDER)


class House:
    """A running proxy with everything around it."""

    def __init__(self, portal: BlockingPortal, proxy: Proxy, sock: socket.socket, ca: RunCA) -> None:
        self.portal = portal
        self.proxy = proxy
        self.events: list[ExchangeFinished] = []
        self.credentials = Credentials({})
        self._sock = sock
        self.address = sock.getsockname()
        self.ca = ca
        self.trust = client_context(ca.certificate_pem)

    @property
    def port(self) -> int:
        return self.address[1]

    def connect(self) -> Wire:
        sock = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            sock.connect(self.address)
        except OSError:
            sock.close()
            raise
        return Wire(sock)

    @property
    def _family(self) -> int:
        return socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET

    def connected(self, target: str, *headers: str) -> Wire:
        """After a CONNECT that was accepted."""
        wire = self.connect()
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", *headers, "", ""]
        wire.send("\r\n".join(lines).encode())
        assert wire.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        return wire

    def tunnel(
        self,
        host: str = "api.test",
        port: int = 443,
        *,
        name: str | None = None,
        context: ssl.SSLContext | None = None,
    ) -> Wire:
        """TLS through the proxy, verified against the run's CA."""
        return self.connected(f"{host}:{port}").tls(context or self.trust, name or host)

    def event(self) -> ExchangeFinished:
        """The next event; waits for it."""
        deadline = 200
        while not self.events and deadline:
            deadline -= 1
            self.portal.call(anyio.sleep, 0.02)
        return self.events.pop(0)


HouseMaker = Callable[..., "contextlib.AbstractContextManager[House]"]


@contextlib.contextmanager
def house(
    loop: str = "asyncio",
    *,
    origins: Mapping[tuple[str, int], Origin] | None = None,
    rules: Sequence[InjectionRule] = (RULE,),
    policy: Policy | None = None,
    limits: Limits | None = None,
    options: UpstreamOptions | None = None,
    resolver: Any = None,
    token: str | None = None,
    ready: Callable[[], Denial | None] | None = None,
    listener: socket.socket | None = None,
    tunnels: Sequence[SshTunnel] = (),
    mcp: McpTable | None = None,
    unreadable: Unreadable = "withhold",
    **more: Any,
) -> Iterator[House]:
    """A proxy that reaches `origins` by name, on one event loop. `more` is the proxy's own."""
    backend, backend_options = LOOPS[loop]
    connect_to = {name: origin.address for name, origin in (origins or {}).items()}
    policy, limits, options = policy or Policy(), limits or Limits(), options or UpstreamOptions()
    options = replace(options, extra_roots=world().pem, connect_to={**connect_to, **options.connect_to})
    sock = listener or socket.create_server(("127.0.0.1", 0), backlog=512)
    with start_blocking_portal(backend, backend_options) as portal:
        ca = RunCA.generate("run_test")
        events: list[ExchangeFinished] = []
        credentials = Credentials({"demo": SECRET})

        def build() -> Proxy:
            upstream = Upstream(options, limits=limits, **({"resolver": resolver} if resolver else {}))
            return Proxy(
                policy=policy,
                ca=ca,
                rules=rules,
                credentials=credentials,
                upstream=upstream,
                on_event=events.append,
                limits=limits,
                token=token,
                tunnels=tunnels,
                mcp=mcp or McpTable(),
                unreadable=unreadable,
                **({"ready": ready} if ready else {}),
                **more,
            )

        async def built() -> Proxy:
            return build()

        made = House(portal, portal.call(built), sock, ca)
        made.events = events
        made.credentials = credentials
        serving, _ = portal.start_task(lambda *, task_status: made.proxy.serve(sock, task_status=task_status))
        try:
            yield made
        finally:
            portal.call(made.proxy.aclose, 0.0)
            serving.result(10)


@pytest.fixture(params=list(LOOPS))
def loop(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(loop: str) -> HouseMaker:
    """Makes a running proxy on each event loop in turn."""

    def maker(**options: Any) -> contextlib.AbstractContextManager[House]:
        return house(loop, **options)

    return maker


@pytest.fixture
def origin() -> Iterator[Origin]:
    """An HTTPS origin for api.test and other.test that echoes."""
    with Origin(echo, context=world().context("api.test", "other.test")) as made:
        yield made
        assert made.failures == []


@contextlib.contextmanager
def tls_origin(script: Script, *names: str) -> Iterator[Origin]:
    with Origin(script, context=world().context(*(names or ("api.test",)))) as made:
        yield made
        assert made.failures == []


@pytest.fixture
def ca_file(tmp_path: Path) -> Callable[[House], Path]:
    """The run's CA as a file, for curl and git."""

    def write(made: House) -> Path:
        path = tmp_path / "run-ca.pem"
        path.write_bytes(made.ca.certificate_pem)
        return path

    return write
