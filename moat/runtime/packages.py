"""Packages of the npm registry, resolved, fetched and verified on the host.

Fetching here instead of in an image build keeps the host's registry settings, tokens, proxies and CAs
out of images and their history, and one download serves every image.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from moat.errors import StartError
from moat.paths import private_dir, write_private
from moat.runtime import trust
from moat.runtime.dockerfile import NpmPackage
from moat.runtime.sandbox import Progress

if TYPE_CHECKING:
    import aiohttp

_PUBLIC = "https://registry.npmjs.org"
_EXACT = re.compile(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?")
_FRESH = 7 * 86400  # seconds for which `22` keeps meaning the same version
_LIMIT = 1 << 30  # bytes of one package


@dataclass(frozen=True, slots=True)
class Settings:
    """Where packages come from: the user's npm settings."""

    registry: str
    token: str | None = field(default=None, repr=False)

    @classmethod
    def from_host(cls) -> Settings:
        """From the environment and `~/.npmrc`, as npm reads them."""
        values = _npmrc(Path(os.environ.get("NPM_CONFIG_USERCONFIG") or Path.home() / ".npmrc"))
        named = os.environ.get("npm_config_registry") or os.environ.get("NPM_CONFIG_REGISTRY")  # noqa: SIM112 - npm's own spelling
        registry = (named or values.get("registry") or _PUBLIC).rstrip("/")
        place = "//" + registry.partition("://")[2]
        token = next(
            (values[k] for k in (f"{place}/:_authToken", f"{place}:_authToken") if k in values), None
        )
        return cls(registry, token)


def _npmrc(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition("=") for line in text.splitlines() if not line.lstrip().startswith(("#", ";")))
    return {key.strip(): os.path.expandvars(value.strip().strip('"')) for key, _, value in pairs if value}


class Registry:
    """The registry as the user's npm would see it. Made by `open_registry`."""

    def __init__(self, session: aiohttp.ClientSession, settings: Settings, cache: Path) -> None:
        self._session = session
        self._settings = settings
        self._cache = cache
        self._versions = cache / "versions.json"

    async def resolve(self, package: NpmPackage, *, fresh: bool = False) -> NpmPackage:
        """The exact version that a prefix or tag means now. Asked once a week, or when `fresh`."""
        if exact(package):
            return package
        known = _json(self._versions)
        key = f"{package.name}@{package.version}"
        entry = known.get(key, {})
        if not fresh and entry.get("at", 0) > time.time() - _FRESH:
            return NpmPackage(package.name, str(entry["version"]))
        try:
            version = pick(await self._document(package.name), package)
        except StartError:
            if not entry or fresh:
                raise
            return NpmPackage(package.name, str(entry["version"]))  # out of date, and better than nothing
        write_private(
            self._versions, json.dumps(known | {key: {"version": version, "at": time.time()}}).encode()
        )
        return NpmPackage(package.name, version)

    async def fetch(self, package: NpmPackage, progress: Progress) -> Path:
        """The package's tarball in the cache, verified against the registry's SHA-512."""
        name = f"{package.name.replace('/', '-').lstrip('@')}-{package.version}.tgz"
        place = private_dir(self._cache) / name
        if place.exists():
            return place
        progress(f"fetching {package.name} {package.version}")
        document = await self._document(package.name)
        try:
            dist = document["versions"][package.version]["dist"]
            url, integrity = str(dist["tarball"]), str(dist["integrity"])
        except (KeyError, TypeError):
            raise StartError(f"the npm registry has no {package.name} {package.version}") from None
        await self._download(url, integrity, place)
        return place

    async def _document(self, name: str) -> dict[str, Any]:
        """The registry's short document of a package: versions, tags, where the tarballs are."""
        url = f"{self._settings.registry}/{quote(name, safe='@')}"
        accept = "application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8"
        try:
            async with self._session.get(url, headers=self._headers(url) | {"Accept": accept}) as response:
                if response.status == 404:
                    raise StartError(f"the npm registry has no package {name}")
                response.raise_for_status()
                return dict(json.loads(await response.read()))
        except (OSError, TimeoutError, ValueError, self._client_error) as error:
            raise self._unreachable(name, error) from None

    async def _download(self, url: str, integrity: str, place: Path) -> None:
        digest = hashlib.sha512()
        part = place.with_suffix(f".{os.getpid()}.part")
        try:
            async with self._session.get(url, headers=self._headers(url)) as response:
                response.raise_for_status()
                with part.open("wb") as file:
                    async for chunk in response.content.iter_chunked(1 << 20):
                        digest.update(chunk)
                        file.write(chunk)
                        if file.tell() > _LIMIT:
                            raise StartError(f"{place.name} is larger than {_LIMIT >> 20} MB")
            if f"sha512-{base64.b64encode(digest.digest()).decode()}" not in integrity.split():
                raise StartError(f"{place.name} is not what the npm registry promised: its checksum differs")
            part.replace(place)
        except (OSError, TimeoutError, self._client_error) as error:
            raise self._unreachable(place.name, error) from None
        finally:
            part.unlink(missing_ok=True)

    def _headers(self, url: str) -> dict[str, str]:
        """The registry's token goes to the registry's host only, wherever a tarball is said to be."""
        own = urlsplit(self._settings.registry).netloc == urlsplit(url).netloc
        token = self._settings.token
        return {"Authorization": f"Bearer {token}"} if own and token else {}

    def _unreachable(self, what: str, error: Exception) -> StartError:
        return StartError(
            f"cannot fetch {what} from {self._settings.registry}: {error}",
            hint="check the network, HTTPS_PROXY, SSL_CERT_FILE and `registry=` in ~/.npmrc",
        )

    @property
    def _client_error(self) -> type[Exception]:
        import aiohttp

        return aiohttp.ClientError


@asynccontextmanager
async def open_registry(cache: Path) -> AsyncIterator[Registry]:
    """The user's npm registry through the host's proxy variables, trusting what the host trusts."""
    import aiohttp

    context = ssl.create_default_context(cadata=trust.host_bundle().decode("ascii"))
    timeout = aiohttp.ClientTimeout(total=None, connect=30, sock_read=60)
    connector = aiohttp.TCPConnector(ssl=context)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=True) as session:
        yield Registry(session, Settings.from_host(), cache)


def exact(package: NpmPackage) -> bool:
    return _EXACT.fullmatch(package.version) is not None


def pick(document: dict[str, Any], package: NpmPackage) -> str:
    """The newest release that `package.version` means: a tag, or the start of a version."""
    tags = document.get("dist-tags", {})
    if package.version in tags:
        return str(tags[package.version])
    prefix = package.version.split(".")
    found: list[str] = [v for v in document.get("versions", {}) if _EXACT.fullmatch(v) and "-" not in v]
    found = [v for v in found if v.split(".")[: len(prefix)] == prefix]
    if not found:
        raise StartError(f"the npm registry has no {package.name} {package.version}")
    return max(found, key=lambda v: [int(part) for part in v.split(".")])


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
