"""A login in the user's browser: authorization code with PKCE, answered on loopback (RFC 8252, RFC 7636)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import re
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from urllib.parse import parse_qs, urlencode, urlsplit

from moat.dataclass import dataclass
from moat.errors import GrantError
from moat.vault.oauth.discovery import Authority
from moat.vault.oauth.tokens import Client, Tokens, redeem
from moat.vault.oauth.web import Web, WebError, host_of

PATIENCE = 600.0  # seconds in which a user logs in
_HEAD_LIMIT = 16 * 1024
_CODE = re.compile(r"[a-z_]{1,64}")
_METHODS = ("none", "client_secret_post", "client_secret_basic")
_HEAD = (
    "HTTP/1.1 {}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\n"
    "Referrer-Policy: no-referrer\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
)
_PAGE = (
    "<!doctype html><meta charset=utf-8><title>Moat</title>"
    "<body style='font-family:sans-serif;margin:4em'><h1>{}</h1><p>{}</p>"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A client that the user has registered by hand."""

    client_id: str
    client_secret: str | None = None


async def log_in(
    web: Web,
    authority: Authority,
    *,
    scopes: tuple[str, ...],
    identity: Identity | None,
    show: Callable[[str], None],
) -> Tokens:
    """Let the user log in; `show` gets the address to open. Raises GrantError."""
    state, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(64)
    async with _callback(authority, state) as (redirect, answer):
        client = await _client(web, authority, redirect, scopes, identity)
        request = {"redirect_uri": redirect, "state": state, "code_challenge": _challenge(verifier)}
        show(_address(authority, client, request, scopes))
        try:
            code = await asyncio.wait_for(answer, PATIENCE)
        except TimeoutError:
            raise GrantError("nobody has logged in", hint="run the command again") from None
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect,
            "code_verifier": verifier,
        }
        return await redeem(web, client, form)


def _challenge(verifier: str) -> str:
    """RFC 7636 §4.2, S256."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def _address(
    authority: Authority, client: Client, request: Mapping[str, str], scopes: tuple[str, ...]
) -> str:
    query = {
        "response_type": "code",
        "client_id": client.client_id,
        **request,
        "code_challenge_method": "S256",
        "resource": client.resource,
    }
    if scopes:
        query["scope"] = " ".join(scopes)
    mark = "&" if urlsplit(authority.authorization_endpoint).query else "?"
    return f"{authority.authorization_endpoint}{mark}{urlencode(query)}"


async def _client(
    web: Web, authority: Authority, redirect: str, scopes: tuple[str, ...], identity: Identity | None
) -> Client:
    """Who we are: what the user says, or what the server registers us as (RFC 7591)."""
    endpoint, resource = authority.token_endpoint, authority.resource
    if identity is not None:
        method = "none" if identity.client_secret is None else "client_secret_post"
        if method not in authority.auth_methods and identity.client_secret is not None:
            method = "client_secret_basic"  # the default of RFC 8414
        return Client(
            token_endpoint=endpoint,
            client_id=identity.client_id,
            client_secret=identity.client_secret,
            auth_method=method,
            resource=resource,
        )
    if authority.registration_endpoint is None:
        raise GrantError(
            f"{host_of(authority.issuer)} registers no clients by itself",
            hint="register one there, with a redirect to http://127.0.0.1/callback, and give --client-id ID",
        )
    offered = [method for method in _METHODS if method in authority.auth_methods]
    wanted = {
        "client_name": "Moat",
        "redirect_uris": [redirect],
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "token_endpoint_auth_method": offered[0] if offered else "none",
    }
    if scopes:
        wanted["scope"] = " ".join(scopes)
    reply = await web.send("POST", authority.registration_endpoint, value=wanted)
    answer = reply.json()
    client_id, secret = answer.get("client_id"), answer.get("client_secret")
    if reply.status not in {200, 201} or not isinstance(client_id, str) or not client_id.isascii():
        raise WebError(
            f"{host_of(authority.registration_endpoint)} did not register Moat (HTTP {reply.status})",
            hint="register a client there by hand and give --client-id ID",
        )
    return Client(
        token_endpoint=endpoint,
        client_id=client_id,
        client_secret=secret if isinstance(secret, str) and secret else None,
        auth_method=str(answer.get("token_endpoint_auth_method") or wanted["token_endpoint_auth_method"]),
        resource=resource,
    )


# --- the browser's answer -------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _callback(authority: Authority, state: str) -> AsyncIterator[tuple[str, asyncio.Future[str]]]:
    """(redirect URI, the code to come). Listens on loopback alone, until the block ends."""
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            status, title, text = _judge(head, authority, state, answer)
            body = _PAGE.format(title, text).encode()
            writer.write(_HEAD.format(status, len(body)).encode() + body)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=_HEAD_LIMIT)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/callback", answer
        await asyncio.sleep(0.1)  # the browser's page is on its way
    finally:
        server.close()


def _judge(
    head: bytes, authority: Authority, state: str, answer: asyncio.Future[str]
) -> tuple[str, str, str]:
    """Take the code of a genuine answer. What anybody else sends to the port changes nothing."""
    words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    path, _, form = words[1].partition("?") if len(words) == 3 and words[0] == "GET" else ("", "", "")
    if path != "/callback":
        return "404 Not Found", "Nothing here", ""
    query = {name: values[0] for name, values in parse_qs(form).items() if len(values) == 1}
    if not hmac.compare_digest(query.get("state", "").encode(), state.encode()):
        return "400 Bad Request", "This is not the login that Moat waits for", "Start it again."
    issuer = query.get("iss")
    if issuer is None and authority.names_itself:
        problem = "the answer does not say which server it is from"
    elif issuer is not None and issuer.rstrip("/") != authority.issuer.rstrip("/"):
        problem = "the answer is from another authorization server"
    elif "code" in query:
        if not answer.done():
            answer.set_result(query["code"])
        return "200 OK", "Logged in", "You can close this window and go back to the terminal."
    else:
        code = query.get("error", "")
        shown = f" ({code})" if _CODE.fullmatch(code) else ""
        problem = f"the login was refused{shown}"
    if not answer.done():
        answer.set_exception(GrantError(problem, hint="run the command again"))
    return "400 Bad Request", "Not logged in", "The terminal says why."
