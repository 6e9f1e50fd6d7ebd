"""Requests to a package registry: with the host's proxy and trust, tokens to their own host only."""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from moat.dataclass import dataclass
from moat.errors import StartError
from moat.paths import private_dir
from moat.runtime import trust
from moat.verification import client_context

if TYPE_CHECKING:
    import aiohttp

_LIMIT = 1 << 30  # bytes of one package
_TOLD_EVERY = 0.5  # seconds


@dataclass(frozen=True, slots=True)
class Place:
    """A registry's address and what it wants to see. `hint` names the user's settings for it."""

    url: str  # without password
    hint: str
    authorization: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, url: str, hint: str, token: str | None = None) -> Place:
        """Takes a password in the address (`https://user:password@host/`) out of it."""
        parts = urlsplit(url)
        authorization = f"Bearer {token}" if token else None
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = f"Basic {base64.b64encode(pair.encode()).decode()}"
        plain = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        return cls(plain.rstrip("/"), hint, authorization)


class NotThereError(StartError):
    """The registry answered 404."""


class Fetcher:
    """Gets documents and files of one registry. Made by `open_fetcher`."""

    def __init__(self, session: aiohttp.ClientSession, place: Place) -> None:
        self._session = session
        self.place = place

    async def document(self, url: str, accept: str) -> tuple[bytes, str]:
        """The answer's body and content type. Raises NotThereError, StartError."""
        async with self._get(url, {"Accept": accept}) as response:
            return await response.read(), response.content_type

    async def download(
        self,
        url: str,
        digests: Mapping[str, bytes],
        target: Path,
        told: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Save `url` as `target`; `digests` are what it must have (`sha512`: …). Raises StartError.

        `told` hears how far it is, twice a second: `12 of 113 MB`.
        """
        found = {name: hashlib.new(name) for name in digests}
        if not found:
            raise StartError(f"{self.place.url} promises no checksum for {target.name}")
        part = private_dir(target.parent) / f"{target.name}.{os.getpid()}.part"
        try:
            async with self._get(url, {}) as response:
                amount = _Amount(response.content_length, told)
                with part.open("wb") as file:
                    async for chunk in response.content.iter_chunked(1 << 20):
                        for digest in found.values():
                            digest.update(chunk)
                        file.write(chunk)
                        amount.reached(file.tell())
                        if file.tell() > _LIMIT:
                            raise StartError(f"{target.name} is larger than {_LIMIT >> 20} MB")
            if any(found[name].digest() != wanted for name, wanted in digests.items()):
                raise StartError(f"{target.name} is not what {self.place.url} promised: its checksum differs")
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    @asynccontextmanager
    async def _get(self, url: str, headers: dict[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        import aiohttp

        # The registry's token goes to the registry's host only, wherever a file is said to be.
        if self.place.authorization and urlsplit(self.place.url).netloc == urlsplit(url).netloc:
            headers = headers | {"Authorization": self.place.authorization}
        try:
            async with self._session.get(url, headers=headers) as response:
                if response.status == 404:
                    raise NotThereError(f"{url} does not exist", hint=self.place.hint)
                response.raise_for_status()
                yield response
        except (OSError, TimeoutError, ValueError, aiohttp.ClientError) as error:
            reason = str(error) or type(error).__name__
            raise StartError(f"cannot fetch {_plain(url)}: {reason}", hint=self.place.hint) from None


class _Amount:
    """How far a download is, said once it has taken half a second and then each half."""

    def __init__(self, whole: int | None, told: Callable[[str], None]) -> None:
        self._of = f" of {whole / 1e6:.0f}" if whole else ""
        self._told = told
        self._next = time.monotonic() + _TOLD_EVERY

    def reached(self, size: int) -> None:
        if (now := time.monotonic()) >= self._next:
            self._next = now + _TOLD_EVERY
            self._told(f"{size / 1e6:.0f}{self._of} MB")


def _plain(url: str) -> str:
    return urlunsplit(urlsplit(url)._replace(query="", fragment=""))


@asynccontextmanager
async def open_fetcher(place: Place) -> AsyncIterator[Fetcher]:
    """Through the host's proxy variables, trusting what the host trusts."""
    import aiohttp

    context = client_context(trust.host_bundle().decode("ascii"))
    timeout = aiohttp.ClientTimeout(total=None, connect=30, sock_read=60)
    connector = aiohttp.TCPConnector(ssl=context)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=True) as session:
        yield Fetcher(session, place)
