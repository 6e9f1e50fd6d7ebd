"""Logins in the browser and strangers: what a server says that is no URL, what others send to our port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from moat.config import UpstreamConfig
from moat.vault.oauth import login
from moat.vault.oauth.discovery import Authority, discover
from moat.vault.oauth.web import Web, WebError
from tests.vault.vendor import Answer, Asked, vendor

pytestmark = pytest.mark.anyio
HOST = "mcp.example.test"
URL = f"https://{HOST}/mcp"
NONE = "https://[no"  # `urlsplit` raises ValueError
METADATA = {
    "issuer": f"https://{HOST}",
    "authorization_endpoint": f"https://{HOST}/authorize",
    "token_endpoint": f"https://{HOST}/token",
    "code_challenge_methods_supported": ["S256"],
}


class Place:
    """An MCP server that is its own authorization server; `says` changes what it says."""

    def __init__(self) -> None:
        self.resource: dict[str, Any] = {"resource": URL, "authorization_servers": [f"https://{HOST}"]}
        self.metadata: dict[str, Any] = dict(METADATA)
        self.challenge = "Bearer"
        self.moved = ""

    def __call__(self, asked: Asked) -> Answer:
        if asked.path == "/mcp":
            return 401, {}, {"WWW-Authenticate": self.challenge}
        if self.moved:
            return 302, {}, {"Location": self.moved}
        if "protected-resource" in asked.path:
            return 200, self.resource
        return 200, self.metadata


@pytest.fixture
def place() -> Place:
    return Place()


@pytest.fixture
def web(place: Place, tmp_path: Path) -> Iterator[Web]:
    with vendor(tmp_path / "vendor", place, HOST) as server:
        yield Web(UpstreamConfig(ca_bundle=server.ca, connect_to={(HOST, 443): ("127.0.0.1", server.port)}))


async def test_an_honest_one(web: Web) -> None:
    found = await discover(web, URL)
    assert (found.issuer, found.token_endpoint) == (f"https://{HOST}", f"https://{HOST}/token")


@pytest.mark.parametrize(
    "says",
    [
        lambda place: place.resource.update(resource=NONE),
        lambda place: place.resource.update(authorization_servers=[NONE]),
        lambda place: place.metadata.update(authorization_endpoint=NONE),
        lambda place: place.metadata.update(token_endpoint=NONE),
        lambda place: place.metadata.update(token_endpoint=f"https://{HOST}:99999/token"),
        lambda place: setattr(place, "moved", NONE),
    ],
    ids=["resource", "issuer", "authorize", "token", "port", "moved"],
)
async def test_what_is_no_url_is_told(web: Web, place: Place, says: Callable[[Place], None]) -> None:
    """Seen failing: a traceback of each."""
    says(place)
    with pytest.raises(WebError):
        await discover(web, URL)


async def test_a_challenge_that_names_no_url_is_as_none(web: Web, place: Place) -> None:
    place.challenge = f'Bearer resource_metadata="{NONE}"'
    assert (await discover(web, URL)).issuer == f"https://{HOST}"


@pytest.mark.parametrize(
    "line",
    ["GET //[ HTTP/1.1", "GET http://[::1/callback HTTP/1.1", "GET /callback?state=%ff&code=1 HTTP/1.1"],
)
async def test_what_anybody_sends_to_the_port_changes_nothing(line: str) -> None:
    """Other users of this machine can. Seen failing: no answer, and a traceback on the user's terminal."""
    loop, errors = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _loop, context: errors.append(context))
    endpoints = (f"https://{HOST}/authorize", f"https://{HOST}/token")
    authority = Authority(f"https://{HOST}", *endpoints, None, False, (), URL, ())
    async with login._callback(authority, "state") as (redirect, answer):
        port = urlsplit(redirect).port
        for sent, status in (
            (line, b"HTTP/1.1 40"),
            ("GET /callback?state=state&code=x HTTP/1.1", b"HTTP/1.1 200 "),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"{sent}\r\n\r\n".encode())
            assert (await asyncio.wait_for(reader.read(), 5)).startswith(status)
            writer.close()
        assert await answer == "x"
    assert errors == []
