"""The npm registry as the user's npm would see it."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from moat.errors import StartError
from moat.runtime.deps.fetching import Fetcher, NotThereError, Place
from moat.runtime.deps.package import Package, newest
from moat.runtime.sandbox import Progress

_PUBLIC = "https://registry.npmjs.org"
_HINT = "check the network, HTTPS_PROXY, SSL_CERT_FILE and `registry=` in ~/.npmrc"
_ACCEPT = "application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8"


def place_of_host() -> Place:
    """The registry and token of the environment and `~/.npmrc`, as npm reads them."""
    values = _npmrc(Path(os.environ.get("NPM_CONFIG_USERCONFIG") or Path.home() / ".npmrc"))
    named = os.environ.get("npm_config_registry") or os.environ.get("NPM_CONFIG_REGISTRY")  # noqa: SIM112 - npm's own spelling
    registry = (named or values.get("registry") or _PUBLIC).rstrip("/")
    scope = "//" + registry.partition("://")[2]
    keys = (f"{scope}/:_authToken", f"{scope}:_authToken")
    return Place.of(registry, _HINT, next((values[key] for key in keys if key in values), None))


def settings() -> dict[str, str]:
    """All that npm itself would find in the environment and the user's files."""
    prefix = "npm_config_"
    own = {k[len(prefix) :]: v for k, v in os.environ.items() if k.lower().startswith(prefix) and v}
    own = {k if k.startswith(("//", "@")) else k.lower(): v for k, v in own.items()}
    files = (own.get("globalconfig"), own.get("userconfig") or Path.home() / ".npmrc")
    read = [_npmrc(Path(file)) for file in files if file]
    return {key: value for values in (*read, own) for key, value in values.items()}


def _npmrc(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition("=") for line in text.splitlines() if not line.lstrip().startswith(("#", ";")))
    return {key.strip(): os.path.expandvars(value.strip().strip('"')) for key, _, value in pairs if value}


class Npm:
    """Implements `resolve.Registry`."""

    def __init__(self, fetcher: Fetcher, cache: Path) -> None:
        self._fetcher = fetcher
        self._cache = cache

    async def find(self, package: Package) -> str:
        """The exact version that `package.version` means now. Raises StartError."""
        return pick(await self._document(package.name), package)

    async def fetch(self, package: Package, progress: Progress) -> Path:
        """The tarball of an exact version in the cache, verified against the registry's checksum."""
        target = self._cache / f"{package.name.replace('/', '-').lstrip('@')}-{package.version}.tgz"
        if target.exists():
            return target
        progress(f"fetching {package}")
        document = await self._document(package.name)
        try:
            dist = document["versions"][package.version]["dist"]
            url, digests = str(dist["tarball"]), _digests(str(dist["integrity"]))
        except (KeyError, TypeError):
            raise _nothing(package) from None
        await self._fetcher.download(
            url, digests, target, lambda amount: progress(f"fetching {package}: {amount}")
        )
        return target

    async def _document(self, name: str) -> dict[str, Any]:
        """The registry's short document of a package: versions, tags, where the tarballs are."""
        url = f"{self._fetcher.place.url}/{quote(name, safe='@')}"
        try:
            value = json.loads((await self._fetcher.document(url, _ACCEPT))[0])
        except NotThereError:
            raise StartError(f"the npm registry has no package {name}") from None
        except ValueError:
            raise StartError(f"{url} answers no JSON", hint=_HINT) from None
        return value if isinstance(value, dict) else {}


def _digests(integrity: str) -> dict[str, bytes]:
    """The strongest checksum of `sha512-… sha1-…`. SHA-1 alone is none."""
    found = dict(part.partition("-")[::2] for part in integrity.split())
    for name in ("sha512", "sha384", "sha256"):
        if name in found:
            try:
                return {name: base64.b64decode(found[name].partition("?")[0], validate=True)}
            except binascii.Error:
                return {}
    return {}


def pick(document: dict[str, Any], package: Package) -> str:
    """The newest release that `package.version` means: a tag, or the start of a version."""
    tags = document.get("dist-tags", {})
    wanted = package.version or "latest"
    if wanted in tags:
        return str(tags[wanted])
    versions = list(document.get("versions", {}))
    found = newest([v for v in versions if re.fullmatch(r"\d+\.\d+\.\d+", v)], wanted)
    if found is None:
        raise _nothing(package)
    return found


def _nothing(package: Package) -> StartError:
    return StartError(f"the npm registry has no {package}")
