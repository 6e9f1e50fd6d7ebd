"""Is a credential any good? One small request to its vendor, at grant time.

The answer is a `Verdict` in words of ours: a vendor's text is never passed on, since it may quote the
key. A vendor that cannot be reached, or that answers something else, says nothing about the credential.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any
from urllib.parse import quote

from moat.config import UpstreamConfig
from moat.dataclass import dataclass
from moat.grants import CredentialKind, Grant, Secret
from moat.vault.providers.declared import Declared
from moat.vault.providers.model import Check

_MODEL = "claude-haiku-4-5-20251001"
_BODY_LIMIT = 64 * 1024  # bytes of an answer that are looked at
_NAME = re.compile(r"[\w.@+ -]{1,100}")
_LOGIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,99}(\[bot\])?")


class Outcome(Enum):
    VALID = "valid"
    REJECTED = "rejected"  # the vendor looked at the credential and said no
    UNKNOWN = "unknown"  # nobody could be asked, or the answer tells nothing


@dataclass(frozen=True, slots=True)
class Verdict:
    outcome: Outcome
    reason: str = ""  # why not valid
    login: str = ""  # whose credential it is, when the vendor tells


async def check_anthropic(kind: CredentialKind, secret: Secret, upstream: UpstreamConfig) -> Verdict:
    """One message of one token, with the key or the bearer token."""
    headers = {"anthropic-version": "2023-06-01"}
    if kind is CredentialKind.OAUTH:
        headers["Authorization"] = f"Bearer {secret.reveal()}"
        headers["anthropic-beta"] = "oauth-2025-04-20"
        headers["anthropic-dangerous-direct-browser-access"] = "true"
    else:
        headers["x-api-key"] = secret.reveal()
    body = {"model": _MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
    status, answer = await _ask(
        "POST", "api.anthropic.com", "/v1/messages", headers=headers, body=body, upstream=upstream
    )
    what = "token" if kind is CredentialKind.OAUTH else "API key"
    if status == 200:
        return Verdict(Outcome.VALID)
    if status == 401:
        return Verdict(Outcome.REJECTED, f"Anthropic does not accept this {what} (HTTP 401)")
    if status == 403:
        return Verdict(Outcome.REJECTED, f"this {what} has no permission to use the API (HTTP 403)")
    if status == 400 and "credit" in _message(answer):
        return Verdict(Outcome.REJECTED, "the account has no credits left (HTTP 400)")
    return _unknown("api.anthropic.com", status, answer)


async def check_github(secret: Secret, upstream: UpstreamConfig) -> Verdict:
    """GET /user; tells the login."""
    headers = {
        "Authorization": f"Bearer {secret.reveal()}",
        "Accept": "application/vnd.github+json",
    }
    status, answer = await _ask("GET", "api.github.com", "/user", headers=headers, upstream=upstream)
    if status == 200:
        login = _json(answer).get("login")
        known = isinstance(login, str) and _LOGIN.fullmatch(login)
        return Verdict(Outcome.VALID, login=str(login) if known else "")
    if status == 401:
        return Verdict(Outcome.REJECTED, "GitHub does not accept this token (HTTP 401)")
    return _unknown("api.github.com", status, answer)


async def check_declared(
    provider: Declared, check: Check, grant: Grant, secret: Secret, upstream: UpstreamConfig
) -> Verdict:
    """A request that the provider declares, with the credential where its injection puts it."""
    host = check.host.format(host=grant.scope or provider.hosts[0].removeprefix("*."))
    headers = {**check.headers, **provider.injection.headers(secret)}
    path = check.path.replace("${token}", quote(secret.reveal(), safe=":"))
    status, answer = await _ask(check.method, host, path, headers=headers, body=check.body, upstream=upstream)
    if 200 <= status < 300:
        return Verdict(Outcome.VALID, login=_login(answer, check.login))
    if status in check.rejected:
        return Verdict(Outcome.REJECTED, f"{host} does not accept this token (HTTP {status})")
    return _unknown(host, status, answer)


async def _ask(
    method: str,
    host: str,
    path: str,
    *,
    headers: Mapping[str, str],
    body: Any = None,
    upstream: UpstreamConfig,
) -> tuple[int, bytes]:
    """(status, start of the body), or (0, name of what went wrong)."""
    import aiohttp

    from moat.vault.client import beginning, https_client, why

    try:
        async with (
            https_client(upstream, host) as session,
            session.request(
                method, f"https://{host}{path}", headers=headers, json=body, allow_redirects=False
            ) as response,
        ):
            return response.status, await beginning(response, _BODY_LIMIT)
    except aiohttp.ClientConnectorCertificateError:
        return 0, b"its certificate is not trusted; see upstream.ca_bundle in config.yaml"
    except TimeoutError:
        return 0, b"no answer in time"
    except (aiohttp.ClientError, OSError) as error:
        return 0, why(error).encode()


def _unknown(host: str, status: int, answer: bytes) -> Verdict:
    if status == 0:
        return Verdict(Outcome.UNKNOWN, f"{host} cannot be reached ({answer.decode()})")
    return Verdict(Outcome.UNKNOWN, f"{host} answered HTTP {status}")


def _login(answer: bytes, keys: tuple[str, ...]) -> str:
    """Who it is, as far as that can be shown safely: an answer may hold anything."""
    value: Any = _json(answer)
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) and _NAME.fullmatch(value) else ""


def _message(answer: bytes) -> str:
    error = _json(answer).get("error")
    return str(error.get("message", "")).lower() if isinstance(error, dict) else ""


def _json(answer: bytes) -> dict[str, Any]:
    try:
        data = json.loads(answer)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
