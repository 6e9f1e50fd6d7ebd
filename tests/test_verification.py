"""An authority without key identifiers, as some company proxies have, wherever Moat is a TLS client.

How it was shown to fail: without the line about VERIFY_X509_STRICT in `moat/verification.py`, or with
`ssl.create_default_context` where `client_context` is called, all are refused. That the default is strict
is played here for Pythons before 3.13.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from moat.config import UpstreamConfig
from moat.proxy import Proxy
from moat.proxy.tls import verifying_context
from moat.runtime.deps.fetching import Place, open_fetcher
from moat.vault.client import client_context, https_client
from moat.verification import client_context as moats
from tests.fakes.pki import make_pki
from tests.fakes.web import served

HOST = "localhost"


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = ssl.create_default_context

    def create_default_context(*given, **named) -> ssl.SSLContext:
        context = usual(*given, **named)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", create_default_context)


@pytest.fixture
def company(tmp_path: Path) -> tuple[Path, Path]:
    """The authority, and a server's key and certificate."""
    return make_pki(tmp_path, [HOST], ca_name="Company", bare=True)


@pytest.fixture
def server(company: tuple[Path, Path]) -> Iterator[str]:
    """The address of a server of the company's."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="welcome")

    app = web.Application()
    app.router.add_get("/", answer)
    with served(app, company[1]) as port:
        yield f"https://{HOST}:{port}/"


def believes(context: ssl.SSLContext, certificate: Path, host: str = HOST) -> bool:
    """Whether a client with `context` ends its handshake with a server that has `certificate`."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(to_client, to_server, server_hostname=host)
    peer = serving.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, peer, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLCertVerificationError:
            return False
    return client.version() is not None


def test_a_strict_client_refuses_it(company: tuple[Path, Path]) -> None:
    """What all this is about: else the tests below would show nothing."""
    ca, certificate = company
    assert not believes(ssl.create_default_context(cafile=str(ca)), certificate)


def test_moat_does_not(company: tuple[Path, Path]) -> None:
    ca, certificate = company
    assert believes(moats(ca.read_text()), certificate)
    assert believes(verifying_context(ca), certificate)
    assert believes(verifying_context(extra_roots=ca.read_bytes()), certificate)
    assert believes(client_context(UpstreamConfig(ca_bundle=ca)), certificate)


def test_but_names_and_signatures_are_checked(company: tuple[Path, Path], tmp_path: Path) -> None:
    ca, certificate = company
    other = tmp_path / "other"
    other.mkdir()
    another, _ = make_pki(other, [HOST], ca_name="Company", bare=True)
    assert not believes(moats(ca.read_text()), certificate, "elsewhere.test")
    assert not believes(moats(another.read_text()), certificate)
    assert not believes(moats(), certificate)


@pytest.mark.anyio
async def test_a_key_is_checked_there(company: tuple[Path, Path], server: str) -> None:
    async with (
        https_client(UpstreamConfig(ca_bundle=company[0]), HOST) as session,
        session.get(server) as answer,
    ):
        assert await answer.text() == "welcome"


@pytest.mark.anyio
async def test_a_package_is_fetched_there(
    company: tuple[Path, Path], server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(company[0]))
    async with open_fetcher(Place.of(server, "hint")) as fetcher:
        assert (await fetcher.document(server, "*/*"))[0] == b"welcome"


@pytest.mark.anyio
async def test_a_client_of_the_proxy_alone_goes_there_without_it(company: tuple[Path, Path]) -> None:
    async with Proxy.open() as proxy:
        context = proxy.client_context()
        context.load_verify_locations(cafile=company[0])
        assert believes(context, company[1])
