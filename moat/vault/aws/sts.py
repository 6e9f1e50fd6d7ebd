"""Assuming a role: one signed request to AWS's Security Token Service, answered with keys that end soon."""

from __future__ import annotations

import datetime as dt
import re
from urllib.parse import urlencode

from moat.config import UpstreamConfig
from moat.dataclass import dataclass
from moat.errors import GrantError
from moat.sigv4 import TIME, Keys, Request, Scope, authorization, payload_hash
from moat.vault.aws.role import Role

_LIMIT = 64 * 1024  # bytes of an answer that are looked at
_LOG_IN = "log in again (`aws sso login`), or renew the keys in your shell or ~/.aws"
# What STS says → (in our words, what helps). Its own text may quote what was sent.
_PROBLEMS = {
    "ExpiredToken": ("your own AWS credentials have expired", _LOG_IN),
    "ExpiredTokenException": ("your own AWS credentials have expired", _LOG_IN),
    "InvalidClientTokenId": ("AWS does not know your own access key", _LOG_IN),
    "UnrecognizedClientException": ("AWS does not know your own access key", _LOG_IN),
    "SignatureDoesNotMatch": (
        "AWS does not accept the signature made with your own keys",
        "check the secret key, and the clock of this machine",
    ),
    "AccessDenied": (
        "your own AWS credentials may not assume the role {role}",
        "the role's trust policy has to name you, and you need sts:AssumeRole on it; check --external-id too",
    ),
    "RegionDisabledException": (
        "AWS's token service is not active in {region}",
        "choose another --region, or activate it for the account",
    ),
    "ValidationError": (
        "AWS does not accept the role, or its session duration of {life} s",
        "grant again with a shorter --session-duration: every role has a longest one, often an hour",
    ),
}


@dataclass(frozen=True, slots=True)
class Session:
    keys: Keys
    ends: dt.datetime
    user: str  # ARN of the session


async def assume(role: Role, name: str, own: Keys, upstream: UpstreamConfig) -> Session:
    """The keys of a role for a session called `name`. Raises GrantError."""
    form = {
        "Action": "AssumeRole",
        "Version": "2011-06-15",
        "RoleArn": role.arn,
        "RoleSessionName": name,
        "DurationSeconds": str(role.life),
    } | ({"ExternalId": role.external_id} if role.external_id else {})
    body = urlencode(form).encode()
    status, answer = await _post(role, body, _headers(role, body, own), upstream)
    if status == 200:
        return _session(answer)
    code = _find(answer, "Code")
    if code in _PROBLEMS:
        problem, hint = (
            text.format(role=role.arn, region=role.region, life=role.life) for text in _PROBLEMS[code]
        )
        raise GrantError(problem, hint=hint)
    shown = f" ({code})" if re.fullmatch(r"[A-Za-z.]{1,80}", code) else ""
    raise GrantError(f"{role.sts} answered HTTP {status}{shown}", hint="try again")


def _headers(role: Role, body: bytes, own: Keys) -> dict[str, str]:
    time = dt.datetime.now(dt.UTC).strftime(TIME)
    headers = {
        "Host": role.sts,
        "Content-Type": "application/x-www-form-urlencoded; charset=utf-8",
        "X-Amz-Date": time,
    } | ({"X-Amz-Security-Token": own.token} if own.token else {})
    scope = Scope(time[:8].encode(), role.region.encode(), b"sts")
    signed = [(key.encode(), value.encode()) for key, value in headers.items()]
    request = Request(b"POST", b"/", b"", signed, payload_hash(body))
    value = request.signature(own, scope, time.encode())
    names = [key.lower() for key, _ in signed]
    return headers | {"Authorization": authorization(own.key_id, scope, names, value).decode()}


async def _post(
    role: Role, body: bytes, headers: dict[str, str], upstream: UpstreamConfig
) -> tuple[int, str]:
    from moat.vault.client import beginning, https_client, reaching

    with reaching(role.sts):
        async with (
            https_client(upstream, role.sts) as session,
            session.post(
                f"https://{role.sts}/", data=body, headers=headers, allow_redirects=False
            ) as response,
        ):
            return response.status, (await beginning(response, _LIMIT)).decode("utf-8", "replace")


def _session(answer: str) -> Session:
    try:
        keys = Keys(*(_find(answer, name) for name in ("AccessKeyId", "SecretAccessKey", "SessionToken")))
        ends = dt.datetime.fromisoformat(_find(answer, "Expiration"))
        return Session(keys, ends.astimezone(dt.UTC), _find(answer, "Arn"))
    except ValueError:
        raise GrantError("AWS's token service gave an answer without keys", hint="try again") from None


def _find(answer: str, name: str) -> str:
    """The text of an element of AWS's plain XML; no entities, no attributes are in what is looked for."""
    match = re.search(rf"<{name}>\s*([^<&\s]+)\s*</{name}>", answer)
    return match[1] if match else ""
