"""A pytest fixture: an intercepting, recording, injecting proxy for the tests of any program.

    def test_it_sends_the_token(moat_proxy):
        proxy = moat_proxy(inject={"api.example.com": "real-token"})
        subprocess.run(["my-program"], env={**os.environ, "API_TOKEN": proxy.placeholders["api.example.com"]})
        (exchange,) = proxy.wait_for(1)
        assert exchange.url == "https://api.example.com/v1/items"

The proxy runs in a thread of its own, so that programs under test may be synchronous, asynchronous or other
processes. While it lives, HTTPS_PROXY and the variables that name certificates point to it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

    from moat.proxy import ExchangeFinished, InjectionRule, OpenProxy, Reader

_PATIENCE = 10.0  # seconds until an exchange that was expected counts as missing
_BUFFER = 100_000  # events of one test


class ProxyInTest:
    """A running proxy, for blocking code."""

    def __init__(
        self, portal: BlockingPortal, proxy: OpenProxy, bundle: Path, placeholders: Mapping[str, str]
    ) -> None:
        self.url = proxy.url  # with the password
        self.port = proxy.port
        self.bundle = bundle  # PEM: what this machine trusts, and the proxy's CA
        self.placeholders = placeholders  # host -> what the program under test sends as its credential
        self.environment: Mapping[str, str] = {}  # what programs need to use it
        self._portal = portal
        self._proxy = proxy
        self._seen: list[ExchangeFinished] = []

    @property
    def exchanges(self) -> list[ExchangeFinished]:
        """What has happened so far, in the order in which it ended."""
        return list(self._seen)

    def wait_for(self, count: int, timeout: float = _PATIENCE) -> list[ExchangeFinished]:
        """The exchanges, as soon as there are `count`. Raises AssertionError when there never are.

        An exchange ends when its last byte has left the proxy: its client may be a moment quicker.
        """
        deadline = time.monotonic() + timeout
        while len(self._seen) < count:
            if time.monotonic() > deadline:
                raise AssertionError(f"{count} exchanges were expected, {len(self._seen)} came: {self._seen}")
            time.sleep(0.005)
        return self.exchanges

    def client_context(self) -> ssl.SSLContext:
        """For clients that look at no variable: trusts this machine's roots and the proxy."""
        return self._proxy.client_context()

    async def _collect(self, events: Reader) -> None:
        from moat.proxy import Missed

        async for event in events:
            assert not isinstance(event, Missed), f"{event} in one test"
            self._seen.append(event)


class ProxyMaker(Protocol):
    """What the fixture is."""

    def __call__(
        self,
        *,
        inject: Mapping[str, str] | None = None,
        servers: Mapping[str, tuple[str, int]] | None = None,
        trust: bytes | str | os.PathLike[str] = b"",
        environ: bool = True,
        **options: Any,
    ) -> ProxyInTest: ...


@pytest.fixture
def moat_proxy(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ProxyMaker]:
    """Call it for a running proxy; it ends with the test. Needs no network of its own.

    inject: host -> secret that is sent there as `Authorization: Bearer`, in place of the placeholder.
    servers: `host[:port]` -> (address, port) to connect to instead; TLS is verified for the host anyway.
    trust: PEM (bytes, or a file) of CAs that upstream servers may have besides the system's.
    environ: False leaves the variables of this process alone; `environment` has them.
    Everything else goes to `moat.proxy.Proxy.open`: policy, rules, credentials, budgets, decider, record…
    """
    with contextlib.ExitStack() as stack:

        def make(
            *,
            inject: Mapping[str, str] | None = None,
            servers: Mapping[str, tuple[str, int]] | None = None,
            trust: bytes | str | os.PathLike[str] = b"",
            environ: bool = True,
            **options: Any,
        ) -> ProxyInTest:
            directory = tmp_path_factory.mktemp("moat-proxy")
            made = stack.enter_context(
                _running(directory, inject or {}, _upstream(servers or {}, trust), options)
            )
            if environ:
                _point_to(made, monkeypatch)
            return made

        yield make


def _upstream(servers: Mapping[str, tuple[str, int]], trust: bytes | str | os.PathLike[str]) -> Any:
    from moat.authority import parse_authority
    from moat.proxy import UpstreamOptions

    named = {parse_authority(name, default_port=443): address for name, address in servers.items()}
    return UpstreamOptions(
        extra_roots=trust if isinstance(trust, bytes) else Path(trust).read_bytes(),
        connect_to={(name.host, name.port): address for name, address in named.items()},
    )


@contextlib.contextmanager
def _running(
    directory: Path, inject: Mapping[str, str], upstream: Any, options: dict[str, Any]
) -> Iterator[ProxyInTest]:
    from anyio.from_thread import start_blocking_portal

    from moat.proxy import Proxy
    from moat.runtime.trust import sandbox_bundle
    from moat.runtime.variables import client_environment

    placeholders = {host: f"moat-placeholder-{secrets.token_hex(8)}" for host in inject}
    options = {"upstream": upstream, **options}
    options["rules"] = (*options.get("rules", ()), *_rules(placeholders))
    if inject:
        if not isinstance(given := options.get("credentials", {}), Mapping):
            raise TypeError("with inject, credentials must be a mapping: name -> secret")
        options["credentials"] = {**given, **inject}
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(Proxy.open(**options)) as proxy:
        bundle = directory / "ca-bundle.pem"
        bundle.write_bytes(sandbox_bundle(proxy.certificate_pem))
        made = ProxyInTest(portal, proxy, bundle, placeholders)
        made.environment = client_environment(proxy.url, str(bundle))
        portal.start_task_soon(made._collect, portal.call(lambda: proxy.events(buffer=_BUFFER)))
        yield made


def _rules(placeholders: Mapping[str, str]) -> Sequence[InjectionRule]:
    from moat.proxy import InjectionRule

    return [
        InjectionRule(credential=host, hosts=(host,), header="authorization", placeholder=placeholder)
        for host, placeholder in placeholders.items()
    ]


def _point_to(proxy: ProxyInTest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ALL_PROXY", "all_proxy", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in proxy.environment.items():
        monkeypatch.setenv(name, value)
