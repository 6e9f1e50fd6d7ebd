"""How a registry wants its clients to log in, and the tokens that its token service sells.

The distribution's token specification: a 401 names a realm, a service and a scope; the realm, asked with the
user's password, answers with a bearer token for that scope, which ends within minutes. In place of a password
it takes an identity token, which `docker login` gets from some services: an OAuth refresh token, in a form.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

from moat.config import UpstreamConfig
from moat.dataclass import dataclass
from moat.errors import GrantError
from moat.grants import Secret

IDENTITY = "<token>"  # Docker's name for the user of an identity token
_LIMIT = 256 * 1024  # bytes of an answer that are looked at
_LIFE = 60.0  # seconds, when the service does not tell
_LONGEST = 3600.0  # seconds that a token is used, whatever the service tells
# From the beginning of a word only: from each of its letters a long one would take the square of its length.
_PARAMETER = re.compile(r'(?<![a-z])([a-z]++)\s*+=\s*+(?:"([^"\\]*+)"|([^\s",]++))', re.IGNORECASE)
_TOKEN = re.compile(r"[!-~]{1,65536}")


@dataclass(frozen=True, slots=True)
class Service:
    """What sells the tokens of a registry. Without a realm, the registry takes the password itself."""

    realm: str = ""  # URL
    service: str = ""  # what the registry is called there

    @property
    def host(self) -> str:
        return urlsplit(self.realm).hostname or ""


@dataclass(frozen=True, slots=True)
class Token:
    secret: Secret
    life: float  # seconds


class LoginRefusedError(GrantError):
    """The password is wrong, or not good for what was wanted."""


async def discover(host: str, upstream: UpstreamConfig) -> Service:
    """Ask a registry, without any credential, how it wants to be asked. Raises GrantError."""
    status, challenges, _ = await _ask(f"https://{host}/v2/", upstream)
    if status != 401:
        what = "it lets everybody in" if status == 200 else f"it answered HTTP {status}"
        raise GrantError(f"{host} asks for no login at /v2/: {what}", hint="check the name of the registry")
    for challenge in challenges:
        scheme, _, rest = challenge.strip().partition(" ")
        if scheme.lower() == "bearer":
            return _service(host, {key.lower(): text or word for key, text, word in _PARAMETER.findall(rest)})
    if any(challenge.strip().lower().startswith("basic") for challenge in challenges):
        return Service()
    raise GrantError(f"{host} asks for a login of a kind that is not known here", hint="Basic and Bearer are")


async def buy(
    service: Service, username: str, password: Secret, scope: str, upstream: UpstreamConfig
) -> Token:
    """A token for some scopes (with spaces between them). Raises GrantError."""
    wanted = scope or "a login"
    if username == IDENTITY:
        form = {"grant_type": "refresh_token", "refresh_token": password.reveal(), "client_id": "moat"}
        form |= {name: text for name, text in (("service", service.service), ("scope", scope)) if text}
        status, _, body = await _ask(service.realm, upstream, form=form)
        refused = {400, 401, 403}  # RFC 6749, 5.2: invalid_grant is a 400
    else:
        fields = [("service", service.service)] if service.service else []
        fields += [("scope", each) for each in scope.split()]
        url = service.realm + ("&" if "?" in service.realm else "?") + urlencode(fields)
        status, _, body = await _ask(url, upstream, headers=_basic(username, password))
        refused = {401, 403}
    if status in refused:
        raise LoginRefusedError(
            f"{service.host} does not accept the login for {wanted} (HTTP {status})",
            hint="the account may not be allowed to; a changed password is granted again",
        )
    if status != 200:
        raise GrantError(f"{service.host} answered HTTP {status} for {wanted}", hint="try again")
    return _token(service, body)


async def check(
    host: str, service: Service, username: str, password: Secret, upstream: UpstreamConfig
) -> None:
    """Whether a login is good: a token for nothing is bought, or the registry asked. Raises GrantError."""
    if service.realm:
        await buy(service, username, password, "", upstream)
        return
    status, _, _ = await _ask(f"https://{host}/v2/", upstream, headers=_basic(username, password))
    if status in {401, 403}:
        raise LoginRefusedError(f"{host} does not accept the login (HTTP {status})")
    if status != 200:
        raise GrantError(f"{host} answered HTTP {status}", hint="try again")


def _basic(username: str, password: Secret) -> dict[str, str]:
    """RFC 7617, in UTF-8."""
    pair = f"{username}:{password.reveal()}".encode()
    return {"Authorization": "Basic " + base64.b64encode(pair).decode()}


def _service(host: str, told: dict[str, str]) -> Service:
    """Raises GrantError for a realm that no password may go to."""
    realm = told.get("realm", "")
    try:
        url = urlsplit(realm)
        plain = url.scheme == "https" and url.hostname and url.port in {None, 443} and not url.fragment
    except ValueError:
        plain = False
    if not plain or "@" in url.netloc:
        raise GrantError(
            f"{host} names a token service that is no plain https URL at port 443",
            hint="no password is sent to such a place",
        )
    return Service(realm, told.get("service", ""))


def _token(service: Service, body: bytes) -> Token:
    """Its answer is never quoted: it may hold a token."""
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    value = value if isinstance(value, dict) else {}
    text = value.get("token") or value.get("access_token")
    if not isinstance(text, str) or not _TOKEN.fullmatch(text):
        raise GrantError(f"{service.host} gave an answer without a token", hint="try again")
    life = value.get("expires_in")
    known = isinstance(life, (int, float)) and not isinstance(life, bool) and life > 0
    return Token(Secret(text), min(float(life), _LONGEST) if known else _LIFE)


async def _ask(
    url: str,
    upstream: UpstreamConfig,
    *,
    headers: Mapping[str, str] | None = None,
    form: Mapping[str, str] | None = None,
) -> tuple[int, tuple[str, ...], bytes]:
    """Status, challenges and the start of the body; no redirect is followed with a password.

    form: what is posted; None: a GET.
    """
    from moat.vault.client import beginning, https_client, reaching

    host, method = urlsplit(url).hostname or "", "GET" if form is None else "POST"
    with reaching(host):
        async with (
            https_client(upstream, host) as session,
            session.request(method, url, headers=headers, data=form, allow_redirects=False) as response,
        ):
            challenges = tuple(response.headers.getall("WWW-Authenticate", ()))
            return response.status, challenges, await beginning(response, _LIMIT)
