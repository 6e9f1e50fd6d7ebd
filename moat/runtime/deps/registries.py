"""Where the user's npm, pip and uv get packages from, as far as that is the user's own.

A registry may have what only the user can read: by a login, or because only their network reaches it. Which
of several a package comes from is not known before it is asked for, nor what it will want itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator

from moat.runtime.deps import npm, pypi

_NPM, _PYPI = "registry.npmjs.org", "pypi.org"
_INDEXES = ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS")


def own(sources: Collection[str]) -> tuple[str, ...]:
    """Hosts, and directories of wheels, for a person; a public registry only when it knows the user there.

    `sources`: what `dependencies` has packages of: `npm`, `pip`, `uv`.
    """
    found = [*(_npm() if "npm" in sources else ()), *(_python() if {"pip", "uv"} & {*sources} else ())]
    return tuple(dict.fromkeys(found))


def _npm() -> Iterator[str]:
    values = npm.settings()
    scopes = [value for key, value in values.items() if key.startswith("@") and key.endswith(":registry")]
    for url in (values.get("registry") or f"https://{_NPM}", *scopes):
        host = _host(url)
        if host != _NPM:
            yield host
        elif "@" in url or any(key.startswith(f"//{host}") for key in values):
            yield f"{host} with your login"


def _python() -> Iterator[str]:
    options = (pypi.option(name) for name in ("index-url", "extra-index-url", "find-links"))
    texts = [*options, *map(os.environ.get, _INDEXES)]
    for place in re.split(r"[\s,]+", " ".join(filter(None, texts))):
        host = _host(place)
        if host and host != _PYPI:
            yield host


def _host(url: str) -> str:
    """Without a password. What is no address is a directory, and stays as it is."""
    _, mark, rest = url.partition("://")
    return rest.partition("/")[0].rpartition("@")[2].lower() or url if mark else url
