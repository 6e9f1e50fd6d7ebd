"""The few requests of a login: HTTPS alone, bounded answers, no way to another host."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from moat.config import UpstreamConfig
from moat.dataclass import dataclass
from moat.errors import GrantError

LIMIT = 1024 * 1024  # bytes of an answer; metadata is a few kilobytes
_REDIRECTS = 3
_NONE: Mapping[str, str] = MappingProxyType({})
_MOVED = frozenset({301, 302, 303, 307, 308})


class WebError(GrantError):
    """A server of a login cannot be reached, or answers what nobody can use."""


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: Mapping[str, str]  # names in lower case; of several fields the last
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body as an object; {} when it is none."""
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}


class Web:
    """Requests by the way that `upstream` of the user's configuration describes."""

    def __init__(self, upstream: UpstreamConfig) -> None:
        self._upstream = upstream

    async def get(self, url: str) -> Reply:
        """Follows redirects within the same host. Raises WebError."""
        for _ in range(_REDIRECTS):
            reply = await self.send("GET", url, {"Accept": "application/json"})
            if reply.status not in _MOVED or "location" not in reply.headers:
                return reply
            split(place := reply.headers["location"])
            target = urljoin(url, place)
            if split(target)[:2] != urlsplit(url)[:2]:
                raise WebError(f"{host_of(url)} redirects to another place")
            url = target
        raise WebError(f"{host_of(url)} redirects again and again")

    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] = _NONE,
        *,
        form: Mapping[str, str] | None = None,
        value: Any = None,
    ) -> Reply:
        """One request with a form or a JSON value; no redirect is followed. Raises WebError."""
        import aiohttp

        from moat.vault.client import beginning, https_client, why

        parts = split(url)
        if parts.scheme != "https" or not parts.hostname or parts.username is not None:
            raise WebError(f"{url[:200]!r} is not an https URL")
        host, port = parts.hostname, parts.port or 443
        try:
            async with (
                https_client(self._upstream, host, port) as session,
                session.request(
                    method, url, headers=dict(headers), data=form, json=value, allow_redirects=False
                ) as answer,
            ):
                body = await beginning(answer, LIMIT + 1)
                if len(body) > LIMIT:
                    raise WebError(f"{host} answers with more than {LIMIT} bytes")
                found = {name.lower(): text for name, text in answer.headers.items()}
                return Reply(answer.status, found, body)
        except aiohttp.ClientConnectorCertificateError:
            raise WebError(
                f"the certificate of {host} is not accepted",
                hint="if a company proxy opens TLS, name its CA in upstream.ca_bundle in config.yaml",
            ) from None
        except TimeoutError:
            raise WebError(f"{host} does not answer in time") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise WebError(f"{host} cannot be reached ({why(error)})") from None


def split(url: str) -> SplitResult:
    """A URL from outside, taken apart. Raises WebError when it is none: a bracket too many, no port."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - it is read when it is asked for
    except ValueError:
        raise WebError(f"{url[:200]!r} is not a URL") from None
    return parts


def host_of(url: str) -> str:
    return urlsplit(url).netloc
