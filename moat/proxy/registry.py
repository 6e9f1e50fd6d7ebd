"""What a request to an image registry needs a token for: scopes of the distribution's token specification.

Registries of images take no password but a token for one repository, which a token service sells for the
password. Clients in the sandbox never meet that service; the host buys what a request needs. Pure.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qs

# Greedy: a repository may be called `blobs`, and what is last counts.
_REPOSITORY = re.compile(r"/v2/(?P<name>[a-z0-9][a-z0-9._/-]{0,254})/(?:manifests|blobs|tags|referrers)/.+")
_NAME = re.compile(r"[a-z0-9][a-z0-9._/-]{0,254}")
_CATALOG = "/v2/_catalog"


def scope_of(method: bytes, target: bytes) -> str:
    """Scopes with a space between them; "" when any valid token is enough. `target` is in origin-form."""
    path, _, query = target.decode("latin-1").partition("?")
    if path == _CATALOG:
        return "registry:catalog:*"
    match = _REPOSITORY.fullmatch(path)
    if match is None:
        return ""
    scopes = [f"repository:{match['name']}:{_actions(method)}"]
    scopes += (f"repository:{name}:pull" for name in _mounted(method, query))
    return " ".join(scopes)


def _actions(method: bytes) -> str:
    if method in {b"GET", b"HEAD"}:
        return "pull"
    return "delete" if method == b"DELETE" else "pull,push"


def _mounted(method: bytes, query: str) -> list[str]:
    """The repository that a blob is taken over from (`POST …/blobs/uploads/?mount=…&from=…`)."""
    if method != b"POST":
        return []
    try:
        names = parse_qs(query, max_num_fields=16).get("from", [])
    except ValueError:
        return []
    return [name for name in names[:1] if _NAME.fullmatch(name)]
