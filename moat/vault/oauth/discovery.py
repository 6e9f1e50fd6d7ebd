"""Who logs users in to an MCP server, and how: RFC 9728, then RFC 8414 or OpenID Connect.

What a server says of others is checked where the standards say so: a resource names itself, an issuer
names itself, and an authorization server that does not know PKCE is not used.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from moat.dataclass import dataclass
from moat.vault.oauth.web import Reply, Web, WebError, host_of, split

_PARAMETER = r'(?:^|[\s,]){}="([^"]{{1,2000}})"'
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,200}")  # RFC 6749 §3.3
_INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "moat", "version": "1"},
    },
}
_ASK = {"Accept": "application/json, text/event-stream"}


@dataclass(frozen=True, slots=True)
class Authority:
    """An authorization server, and what it gives tokens for."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    registration_endpoint: str | None
    names_itself: bool  # its answer in the browser carries `iss` (RFC 9207)
    auth_methods: tuple[str, ...]
    resource: str  # RFC 8707: the token is for this
    scopes: tuple[str, ...]  # what the server asks for


async def discover(web: Web, url: str) -> Authority:
    """Find out who logs users in to the MCP server at `url`. Raises WebError."""
    metadata_url, wanted = await _challenge(web, url)
    # Servers of the specification of 2025-03-26 are their own authorization server.
    itself = {"resource": url, "authorization_servers": [f"https://{host_of(url)}"]}
    about = await _protected_resource(web, url, metadata_url) or itself
    servers = about.get("authorization_servers")
    issuer = str(servers[0]) if isinstance(servers, list) and servers else ""
    resource, offered = str(about["resource"]), _words(about.get("scopes_supported"))
    found = await _metadata(web, issuer)
    scopes = wanted or offered
    if scopes and "offline_access" in _words(found.get("scopes_supported")):
        scopes = tuple(dict.fromkeys((*scopes, "offline_access")))  # what some call a refresh token
    return Authority(
        issuer=str(found["issuer"]),
        authorization_endpoint=_endpoint(found, "authorization_endpoint"),
        token_endpoint=_endpoint(found, "token_endpoint"),
        registration_endpoint=_endpoint(found, "registration_endpoint")
        if "registration_endpoint" in found
        else None,
        names_itself=found.get("authorization_response_iss_parameter_supported") is True,
        auth_methods=_words(found.get("token_endpoint_auth_methods_supported")),
        resource=resource,
        scopes=scopes,
    )


async def _challenge(web: Web, url: str) -> tuple[str | None, tuple[str, ...]]:
    """Ask without a login: where the server's metadata is, and which scopes it wants."""
    reply = await web.send("POST", url, _ASK, value=_INITIALIZE)
    if reply.status not in {401, 403}:
        if 200 <= reply.status < 300:
            raise WebError(
                f"{host_of(url)} asks for no login", hint="use the server without `auth` in agent.yaml"
            )
        if reply.status not in {400, 404, 405, 406}:
            raise WebError(f"{host_of(url)} answered HTTP {reply.status}", hint="check the URL")
    challenge = reply.headers.get("www-authenticate", "")
    place = re.search(_PARAMETER.format("resource_metadata"), challenge)
    scope = re.search(_PARAMETER.format("scope"), challenge)
    return place[1] if place else None, _words(scope[1].split() if scope else None)


async def _protected_resource(web: Web, url: str, named: str | None) -> dict[str, Any] | None:
    """The metadata of the server (RFC 9728), from where it says or from the well-known places."""
    parts = urlsplit(url)
    origin, path = f"https://{parts.netloc}", parts.path.rstrip("/")
    known = "/.well-known/oauth-protected-resource"
    places = [f"{origin}{known}{path}", f"{origin}{known}"]
    if named is not None and named.startswith(f"{origin}/"):
        places.insert(0, named)
    for place in dict.fromkeys(places):
        reply = await web.get(place)
        about = reply.json()
        if reply.status == 200 and "authorization_servers" in about:
            if not _covers(str(about.get("resource", "")), url):
                raise WebError(f"the metadata of {parts.netloc} is about another server")
            return about
    return None


async def _metadata(web: Web, issuer: str) -> dict[str, Any]:
    """The metadata of an authorization server that names itself as `issuer` (RFC 8414 §3.3)."""
    parts = split(issuer)
    if parts.scheme != "https" or not parts.netloc or parts.query or parts.fragment:
        raise WebError(f"{issuer[:200]!r} is not the URL of an authorization server")
    origin, path = f"https://{parts.netloc}", parts.path.rstrip("/")
    places = [
        f"{origin}/.well-known/oauth-authorization-server{path}",
        f"{origin}/.well-known/openid-configuration{path}",
        f"{origin}{path}/.well-known/openid-configuration",
    ]
    for place in dict.fromkeys(places):
        reply: Reply = await web.get(place)
        found = reply.json()
        if reply.status != 200 or "issuer" not in found:
            continue
        if str(found["issuer"]).rstrip("/") != issuer.rstrip("/"):
            raise WebError(f"{parts.netloc} says that it is {str(found['issuer'])[:200]!r}, not {issuer!r}")
        if "S256" not in _words(found.get("code_challenge_methods_supported")):
            raise WebError(f"{parts.netloc} does not offer PKCE (S256), without which a login is not safe")
        return found
    raise WebError(
        f"{parts.netloc} does not say how it logs users in",
        hint="if the server takes a token or key: moat grant mcp NAME",
    )


def _covers(resource: str, url: str) -> bool:
    """Whether the metadata of `resource` is meant for `url`: the same place, or one that it lies in."""
    about, server = split(resource), urlsplit(url)
    if (about.scheme, about.netloc.lower()) != (server.scheme, server.netloc.lower()):
        return False
    return f"{server.path.rstrip('/')}/".startswith(f"{about.path.rstrip('/')}/")


def _endpoint(found: dict[str, Any], name: str) -> str:
    value = found.get(name)
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or " " in value:
        raise WebError(f"the authorization server has no usable {name}")
    if split(value).scheme != "https" or split(value).fragment:
        raise WebError(f"the {name} of the authorization server is not an https URL")
    return value


def _words(value: object) -> tuple[str, ...]:
    """The well-formed words of a list from outside."""
    words = value if isinstance(value, list) else []
    return tuple(word for word in words[:100] if isinstance(word, str) and _SCOPE.fullmatch(word))
