"""The tokens of one login, and the endpoint that gives and renews them (RFC 6749, RFC 8707)."""

from __future__ import annotations

import json
import re
import time
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import asdict, field, replace
from typing import Any
from urllib.parse import quote_plus

from moat.dataclass import dataclass
from moat.errors import GrantError, VaultError
from moat.grants import Secret
from moat.vault.oauth.web import Web, WebError, host_of

_CODE = re.compile(r"[a-z_]{1,64}")
_TOKEN = re.compile(r"[!-~]{1,65536}")
_EARLY = 300.0  # seconds before its end in which a token is renewed, or a fifth of its life if that is less


class LoginLostError(GrantError):
    """The authorization server no longer accepts the login; only the user can make a new one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Who Moat is for an authorization server."""

    token_endpoint: str
    client_id: str
    client_secret: str | None = field(default=None, repr=False)
    auth_method: str = "none"  # `none`, `client_secret_post`, `client_secret_basic`
    resource: str  # RFC 8707; empty: the server does not know it

    def authenticated(self, form: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
        """(headers, form) of a request to the token endpoint."""
        fields = {**form, "resource": self.resource} if self.resource else dict(form)
        if self.auth_method == "client_secret_basic" and self.client_secret is not None:
            login = f"{quote_plus(self.client_id)}:{quote_plus(self.client_secret)}".encode()
            return {"Authorization": "Basic " + b64encode(login).decode()}, fields
        fields["client_id"] = self.client_id
        if self.client_secret is not None:
            fields["client_secret"] = self.client_secret
        return {}, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What is stored of a login, as one secret."""

    client: Client
    access: str = field(repr=False)
    refresh: str | None = field(default=None, repr=False)
    obtained_at: float  # seconds since the epoch
    lifetime: float | None = None  # seconds; None: the server did not say

    def encode(self) -> Secret:
        return Secret(json.dumps(asdict(self)))

    @classmethod
    def decode(cls, secret: Secret, name: str) -> Tokens:
        """Raises VaultError."""
        try:
            data = json.loads(secret.reveal())
            return cls(**{**data, "client": Client(**data["client"])})
        except (KeyError, TypeError, ValueError, AttributeError):
            raise VaultError(f"the stored login {name} is damaged", hint="make it again") from None

    def expired(self, now: float) -> bool:
        return self.lifetime is not None and now >= self.obtained_at + self.lifetime

    def due(self, now: float) -> bool:
        """Whether it is time for a new one."""
        if self.lifetime is None:
            return False
        return now >= self.obtained_at + self.lifetime - min(_EARLY, self.lifetime / 5)


async def redeem(web: Web, client: Client, form: Mapping[str, str]) -> Tokens:
    """Exchange an authorization code. Raises GrantError."""
    return _tokens(client, await _ask(web, client, form), time.time())


async def renew(web: Web, tokens: Tokens) -> Tokens:
    """New tokens for a refresh token; the server may have replaced that as well.

    Raises LoginLostError when it is no longer accepted, WebError when nobody can tell.
    """
    assert tokens.refresh is not None
    form = {"grant_type": "refresh_token", "refresh_token": tokens.refresh}
    found = _tokens(tokens.client, await _ask(web, tokens.client, form), time.time())
    return found if found.refresh is not None else replace(found, refresh=tokens.refresh)


async def _ask(web: Web, client: Client, form: Mapping[str, str]) -> dict[str, Any]:
    headers, fields = client.authenticated(form)
    headers["Accept"] = "application/json"
    reply = await web.send("POST", client.token_endpoint, headers, form=fields)
    answer = reply.json()
    where = host_of(client.token_endpoint)
    if reply.status == 200:
        return answer
    code = str(answer.get("error", ""))
    if code in {"invalid_grant", "invalid_client", "unauthorized_client"}:
        raise LoginLostError(f"{where} no longer accepts the login ({code})")
    shown = f" ({code})" if _CODE.fullmatch(code) else ""
    raise WebError(f"{where} answered HTTP {reply.status}{shown}")


def _tokens(client: Client, answer: Mapping[str, Any], now: float) -> Tokens:
    access, refresh = answer.get("access_token"), answer.get("refresh_token")
    where = host_of(client.token_endpoint)
    if not isinstance(access, str) or not _TOKEN.fullmatch(access):
        raise WebError(f"{where} gave no usable access token")
    if str(answer.get("token_type", "")).lower() != "bearer":
        raise WebError(f"{where} gave a token that is no bearer token")
    if refresh is not None and not (isinstance(refresh, str) and _TOKEN.fullmatch(refresh)):
        raise WebError(f"{where} gave no usable refresh token")
    life = answer.get("expires_in")
    number = life if isinstance(life, (int, float)) and not isinstance(life, bool) else 0
    return Tokens(
        client=client,
        access=access,
        refresh=refresh,
        obtained_at=now,
        lifetime=float(number) if 0 < number < 10**9 else None,
    )
