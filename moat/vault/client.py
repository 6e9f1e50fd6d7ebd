"""A plain HTTPS client for grant time: checks a credential with its vendor, over verified TLS.

It goes the way that `upstream` of the user's `config.yaml` describes, as the proxy does later: a
certificate authority of the company, a proxy, and `connect_to` detours (verified for the real name).
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from moat import verification
from moat.config import UpstreamConfig
from moat.errors import GrantError

TIMEOUT = 30.0  # seconds for a whole check


@contextlib.asynccontextmanager
async def https_client(
    upstream: UpstreamConfig, host: str, port: int = 443
) -> AsyncIterator[aiohttp.ClientSession]:
    """A session for requests to `host`. A detour of `connect_to` is taken without a proxy."""
    detour = (host, port) in upstream.connect_to
    connector = aiohttp.TCPConnector(
        ssl=client_context(upstream), resolver=_Resolver(upstream.connect_to), use_dns_cache=False
    )
    async with aiohttp.ClientSession(
        connector=connector,
        proxy=None if detour else upstream.proxy or _proxy_of_shell(host),
        trust_env=False,  # with the variables of a proxy it would take logins from ~/.netrc, for any host
        timeout=aiohttp.ClientTimeout(total=TIMEOUT),
        headers={"User-Agent": "moat"},
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as session:
        yield session


def _proxy_of_shell(host: str) -> str | None:
    """HTTPS_PROXY, unless NO_PROXY speaks for `host`."""
    return None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get("https")


@contextlib.contextmanager
def reaching(host: str) -> Iterator[None]:
    """What can go wrong on the way to `host`, as a GrantError."""
    try:
        yield
    except aiohttp.ClientConnectorCertificateError:
        raise GrantError(
            f"the certificate of {host} is not trusted", hint="see upstream.ca_bundle in config.yaml"
        ) from None
    except TimeoutError:
        raise GrantError(f"{host} did not answer in time", hint="try again") from None
    except (aiohttp.ClientError, OSError) as error:
        raise GrantError(f"{host} cannot be reached ({why(error)})", hint="try again") from None


def why(error: Exception) -> str:
    """What is wrong on the way, never in the error's own words: a URL in them may hold a secret."""
    match error:
        case aiohttp.ClientConnectorDNSError():
            return "its name cannot be resolved"
        case aiohttp.ClientProxyConnectionError():
            return "the proxy of HTTPS_PROXY or upstream.proxy does not answer"
        case aiohttp.ClientConnectorError(os_error=OSError(errno=int(number))):
            return os.strerror(number).lower()
        case aiohttp.ServerDisconnectedError():
            return "it closed the connection"
    return type(error).__name__


async def beginning(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """A body, or so many bytes of it. One `read` of aiohttp's gives no more than what has come by then."""
    data = b""
    while len(data) < limit and (more := await response.content.read(limit - len(data))):
        data += more
    return data


def client_context(upstream: UpstreamConfig) -> ssl.SSLContext:
    """System roots, NODE_EXTRA_CA_CERTS of this shell, and the configured bundle."""
    context = verification.client_context()
    extra = os.environ.get("NODE_EXTRA_CA_CERTS")
    if extra:
        with contextlib.suppress(OSError):  # a stale variable must not break what works without it
            context.load_verify_locations(cafile=extra)
    if upstream.ca_bundle is not None:
        context.load_verify_locations(cafile=str(upstream.ca_bundle))
    return context


class _Resolver(AbstractResolver):
    """Names as usual, except for the detours of `connect_to`."""

    def __init__(self, connect_to: Mapping[tuple[str, int], tuple[str, int]]) -> None:
        self._connect_to = connect_to
        self._usual = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        address, target = self._connect_to.get((host.lower(), port), (host, port))
        found = await self._usual.resolve(address, target, family)
        return [{**result, "hostname": host} for result in found]

    async def close(self) -> None:
        await self._usual.close()
