"""The Python package index as the user's pip would see it: wheels, each with its SHA-256."""

from __future__ import annotations

import configparser
import json
import os
import platform
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from moat.dataclass import dataclass
from moat.errors import StartError
from moat.runtime.deps.fetching import Fetcher, NotThereError, Place
from moat.runtime.deps.package import Package, newest
from moat.runtime.sandbox import Progress

_PUBLIC = "https://pypi.org/simple"
_HINT = "check the network, HTTPS_PROXY, SSL_CERT_FILE and `index-url` in pip's configuration"
_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html; q=0.5"
_GLIBC = 36  # 2.36, of Debian 12: the oldest that a sandbox has
_WHEEL = re.compile(
    r"(?P<name>[^-]+)-(?P<version>[^-]+)(-\d[^-]*)?-(?P<python>[^-]+)-(?P<abi>[^-]+)-(?P<platform>[^-]+)\.whl"
)
_CONFIG = ("/etc/xdg/pip/pip.conf", "/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf")


@dataclass(frozen=True, slots=True)
class Wheel:
    version: str
    url: str
    sha256: str


def option(name: str) -> str | None:
    """A global option of pip (`index-url`), from the environment or its files."""
    if value := os.environ.get(f"PIP_{name.upper().replace('-', '_')}"):
        return value
    parser = configparser.RawConfigParser(strict=False)
    own = os.environ.get("PIP_CONFIG_FILE")
    try:
        parser.read(
            [*(os.path.expanduser(path) for path in _CONFIG), *([own] if own else [])], encoding="utf-8"
        )
    except configparser.Error:
        return None
    return parser.get("global", name, fallback=None)


def place_of_host() -> Place:
    return Place.of(option("index-url") or _PUBLIC, _HINT)


class PyPI:
    """Implements `resolve.Registry` for programs: wheels that any Python can unpack."""

    def __init__(self, fetcher: Fetcher, cache: Path) -> None:
        self._fetcher = fetcher
        self._cache = cache

    async def find(self, package: Package) -> str:
        """The exact version that `package.version` means now. Raises StartError."""
        versions = [wheel.version for wheel in await self._wheels(package.name, any_kind=True)]
        found = package.version if package.version in versions else newest(versions, package.version)
        if found is None:
            raise _nothing(package)
        return found

    async def fetch(self, package: Package, progress: Progress) -> Path:
        """The wheel of an exact version in the cache, verified against the index's SHA-256."""
        target = self._cache / f"{package.name}-{package.version}-{platform.machine()}.whl"
        if target.exists():
            return target
        progress(f"fetching {package}")
        wheels = [w for w in await self._wheels(package.name) if w.version == package.version]
        if not wheels:
            raise _nothing(package)
        await self._fetcher.download(
            wheels[0].url,
            {"sha256": bytes.fromhex(wheels[0].sha256)},
            target,
            lambda amount: progress(f"fetching {package}: {amount}"),
        )
        return target

    async def _wheels(self, name: str, *, any_kind: bool = False) -> list[Wheel]:
        """With `any_kind` also those that need a certain Python: uv will choose among them."""
        url = f"{self._fetcher.place.url}/{_normal(name)}/"
        try:
            body, kind = await self._fetcher.document(url, _ACCEPT)
        except NotThereError:
            raise StartError(f"the Python package index has no package {name}") from None
        files = _json_files(body) if kind.endswith("json") else _html_files(body)
        found = []
        for file, address, digest in files:
            match = _WHEEL.fullmatch(file)
            if match and re.fullmatch(r"[0-9a-f]{64}", digest) and (any_kind or _fits(match)):
                found.append(Wheel(match["version"], urljoin(url, address), digest))
        return found


def _normal(name: str) -> str:
    """`uvicorn[standard]` → `uvicorn`; one spelling for each package (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name.partition("[")[0]).lower()


def _fits(wheel: re.Match[str]) -> bool:
    return (
        "py3" in wheel["python"].split(".")
        and wheel["abi"] == "none"
        and bool({"any", *platforms()} & set(wheel["platform"].split(".")))
    )


def platforms() -> list[str]:
    """The platform tags that a sandbox on this machine can run, the newest first."""
    machine = platform.machine()
    old = [f"manylinux{name}_{machine}" for name in ("2014", "2010", "1")]
    return [*(f"manylinux_2_{minor}_{machine}" for minor in range(_GLIBC, 4, -1)), *old, f"linux_{machine}"]


def _json_files(body: bytes) -> Iterator[tuple[str, str, str]]:
    """(name, address, SHA-256) of each file that was not taken back."""
    try:
        files: list[Any] = json.loads(body)["files"]
    except (ValueError, KeyError, TypeError):
        raise StartError(
            "the Python package index answers something else than an index", hint=_HINT
        ) from None
    for file in files:
        if not file.get("yanked"):
            yield str(file["filename"]), str(file["url"]), str(file.get("hashes", {}).get("sha256", ""))


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "a" and values.get("href") and "data-yanked" not in values:
            address, _, fragment = str(values["href"]).partition("#")
            name = unquote(urlsplit(address).path.rpartition("/")[2])
            self.found.append((name, address, fragment.removeprefix("sha256=")))


def _html_files(body: bytes) -> list[tuple[str, str, str]]:
    """The same of the older form, which company mirrors still have (PEP 503)."""
    links = _Links()
    links.feed(body.decode("utf-8", "replace"))
    return links.found


def _nothing(package: Package) -> StartError:
    return StartError(f"the Python package index has no {package} for {platform.machine()}")
