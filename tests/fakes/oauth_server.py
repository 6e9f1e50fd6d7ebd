"""A real OAuth authorization server, the SDK's, with refresh tokens that are good for one use.

It is at https://auth.example.test and gives tokens for https://mcp.example.test/mcp. `visit` is the browser of a user
who agrees to everything.
"""

from __future__ import annotations

import asyncio
import http.client
import secrets
import socket
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from mcp.server.auth.provider import (
    AccessToken,
    AuthorizationCode,
    AuthorizationParams,
    RefreshToken,
    TokenError,
    construct_redirect_uri,
)
from mcp.server.auth.routes import build_metadata, create_auth_routes
from mcp.server.auth.settings import AuthSettings, ClientRegistrationOptions, RevocationOptions
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from pydantic import AnyHttpUrl
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from tests.fakes.asgi import served

ISSUER = "https://auth.example.test"
RESOURCE = "https://mcp.example.test/mcp"


@dataclass
class AuthorizationServer:
    """Implements the SDK's provider and verifier; serves itself in a thread."""

    certificate: Path
    lifetime: float = 3600  # seconds, of an access token
    iss: str | None = ISSUER  # what it says in the browser about itself
    metadata: dict[str, Any] = field(default_factory=dict)  # changes
    port: int = 0
    clients: dict[str, OAuthClientInformationFull] = field(default_factory=dict)
    codes: dict[str, AuthorizationCode] = field(default_factory=dict)
    access: dict[str, AccessToken] = field(default_factory=dict)
    refresh: dict[str, RefreshToken] = field(default_factory=dict)
    asked: int = 0  # renewals that were begun
    renewals: int = 0
    reused: int = 0  # refresh tokens that came a second time: a real server ends the login then
    delay: float = 0.0  # seconds that a renewal takes
    patient: bool = False  # takes a refresh token again, as servers do that foresee lost answers

    def settings(self) -> AuthSettings:
        """For a resource server that takes these tokens."""
        return AuthSettings(
            issuer_url=AnyHttpUrl(ISSUER),
            resource_server_url=AnyHttpUrl(RESOURCE),
            validate_token_resource=True,
            required_scopes=["tools"],
        )

    # --- the SDK's provider ----------------------------------------------------------------------

    async def get_client(self, client_id: str) -> OAuthClientInformationFull | None:
        return self.clients.get(client_id)

    async def register_client(self, client_info: OAuthClientInformationFull) -> None:
        assert client_info.client_id is not None
        self.clients[client_info.client_id] = client_info

    async def authorize(self, client: OAuthClientInformationFull, params: AuthorizationParams) -> str:
        code = secrets.token_urlsafe(24)
        assert client.client_id is not None
        self.codes[code] = AuthorizationCode(
            code=code,
            scopes=params.scopes or [],
            expires_at=time.time() + 60,
            client_id=client.client_id,
            code_challenge=params.code_challenge,
            redirect_uri=params.redirect_uri,
            redirect_uri_provided_explicitly=params.redirect_uri_provided_explicitly,
            resource=params.resource,
        )
        answer = {"code": code, "state": params.state} | ({"iss": self.iss} if self.iss else {})
        return construct_redirect_uri(str(params.redirect_uri), **answer)

    async def load_authorization_code(self, client: Any, authorization_code: str) -> AuthorizationCode | None:
        return self.codes.get(authorization_code)

    async def exchange_authorization_code(
        self, client: Any, authorization_code: AuthorizationCode
    ) -> OAuthToken:
        del self.codes[authorization_code.code]
        return self._give(client.client_id, authorization_code.scopes, authorization_code.resource)

    async def load_refresh_token(self, client: Any, refresh_token: str) -> RefreshToken | None:
        found = self.refresh.get(refresh_token)
        self.reused += found is None
        return found

    async def exchange_refresh_token(
        self, client: Any, refresh_token: RefreshToken, scopes: list[str]
    ) -> OAuthToken:
        if not self.patient and self.refresh.pop(refresh_token.token, None) is None:
            self.reused += 1
            raise TokenError("invalid_grant")
        self.asked += 1
        await asyncio.sleep(self.delay)
        self.renewals += 1
        return self._give(client.client_id, scopes, refresh_token.resource)

    async def load_access_token(self, token: str) -> AccessToken | None:
        return self.access.get(token)

    async def verify_token(self, token: str) -> AccessToken | None:
        found = self.access.get(token)
        return found if found and (found.expires_at or 0) > time.time() else None

    async def revoke_token(self, token: Any) -> None: ...

    async def exchange_identity_assertion(self, client: Any, params: Any) -> OAuthToken:
        raise TokenError("unsupported_grant_type")

    def _give(self, client: str, scopes: list[str], resource: str | None) -> OAuthToken:
        access, refresh = f"real-access-{secrets.token_hex(16)}", f"real-refresh-{secrets.token_hex(16)}"
        ends = int(time.time() + self.lifetime) + 1
        self.access[access] = AccessToken(
            token=access, client_id=client, scopes=scopes, expires_at=ends, resource=resource
        )
        self.refresh[refresh] = RefreshToken(
            token=refresh, client_id=client, scopes=scopes, resource=resource
        )
        return OAuthToken(
            access_token=access,
            refresh_token=refresh,
            expires_in=int(self.lifetime),
            scope=" ".join(scopes),
        )

    # --- serving ---------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        options = ClientRegistrationOptions(enabled=True, valid_scopes=["tools"], default_scopes=["tools"])
        issuer = AnyHttpUrl(ISSUER)

        async def metadata(_: Any) -> JSONResponse:
            found = build_metadata(issuer, None, options, RevocationOptions())
            shown = found.model_dump(mode="json", exclude_none=True) | {"issuer": ISSUER}
            shown["token_endpoint_auth_methods_supported"].append("none")
            shown |= {"authorization_response_iss_parameter_supported": True} | self.metadata
            return JSONResponse(shown)

        routes = create_auth_routes(self, issuer, None, options, RevocationOptions())
        app = Starlette(routes=[Route("/.well-known/oauth-authorization-server", metadata), *routes])
        self._serving = served(app, self.certificate, self.port)
        self.port = self._serving.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._serving.__exit__(None, None, None)

    def end_login(self) -> None:
        """As a user who takes the permission back."""
        self.refresh.clear()
        self.access.clear()


def visit(address: str, *, port: int, ca: Path) -> tuple[int, str]:
    """Open a login's address in a browser and follow it to the end: (status, page)."""
    parts = urlsplit(address)
    context = ssl.create_default_context(cafile=str(ca))
    with socket.create_connection(("127.0.0.1", port)) as sock:
        connection = http.client.HTTPConnection(parts.hostname or "")
        connection.sock = context.wrap_socket(sock, server_hostname=parts.hostname)
        connection.request("GET", f"{parts.path}?{parts.query}")
        target = connection.getresponse().getheader("location")
        connection.sock.close()
    assert target is not None, "the authorization server sends the browser nowhere"
    return call_back(target)


def call_back(target: str) -> tuple[int, str]:
    """What the browser gets at the end of its way: (status, page)."""
    parts = urlsplit(target)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    connection.request("GET", f"{parts.path}?{parts.query}")
    answer = connection.getresponse()
    try:
        return answer.status, answer.read().decode()
    finally:
        connection.close()
