"""Logins that a tool in the sandbox wants to renew itself: answered here, with the placeholders it holds.

A vendor's answer would leave real tokens in the sandbox. So whoever presents the placeholder of a refresh
token gets it back, with a far end; what is real is renewed on the host, where the proxy gets it from. A
fresh login at a vendor whose credential is granted is refused, for the same reason.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl

from moat.authority import Authority
from moat.errors import MoatError
from moat.grants import LoginRule
from moat.proxy.answers import Answer, denied
from moat.proxy.events import Denial
from moat.proxy.fields import Headers
from moat.proxy.paths import AmbiguousPathError, readings

LONGEST = 64 * 1024  # bytes of a request; no refresh token is longer
LIFE = 365 * 24 * 3600  # seconds: no run lasts as long
_JSON: Headers = (
    (b"Content-Type", b"application/json"),
    (b"Cache-Control", b"no-store"),  # RFC 6749 §5.1
    (b"X-Moat-Answered", b"login"),
    (b"Connection", b"close"),
)

_NONE: Mapping[str, Sequence[LoginRule]] = MappingProxyType({})


async def _nothing(_credential: str) -> None:
    """There is nothing to renew."""


class LoginTable:
    """The token endpoints of a run."""

    def __init__(
        self,
        rules: Iterable[LoginRule] = (),
        renew: Callable[[str], Awaitable[object]] = _nothing,
        told: Callable[[LoginRule, str], None] = lambda _rule, _outcome: None,
    ) -> None:
        """`renew` makes sure that a credential can be used, and raises MoatError when it cannot.

        `told` hears of every answer: `renewed`, `lost` or `refused`. It neither blocks nor raises.
        """
        self._rules: dict[str, dict[str, list[LoginRule]]] = {}
        for rule in rules:
            for host in rule.hosts:
                for path in filter(None, (rule.path, rule.about)):
                    self._rules.setdefault(host, {}).setdefault(path, []).append(rule)
        self._renew = renew
        self._told = told

    def site(self, scheme: str, authority: Authority) -> Mapping[str, Sequence[LoginRule]]:
        """The endpoints at an authority, by path."""
        if scheme != "https" or authority.port != 443:
            return _NONE
        return self._rules.get(authority.host, _NONE)

    async def answer(self, rules: Iterable[LoginRule], path: str, head: bytes, body: bytes) -> Answer | None:
        """What a tool gets for a request; None: it is about none of the run's logins, and not refused."""
        fields = _fields(body)
        for rule in rules:
            if path == rule.about:
                if rule.access.encode() in head + body:
                    return await self._renewed(rule, {"scope": rule.scope, "expires_in": LIFE})
            elif rule.refresh and fields.get("refresh_token") == rule.refresh:
                return await self._renewed(rule, _tokens(rule))
        refused = next((rule for rule in rules if not rule.shared and path == rule.path), None)
        if refused is None:
            return None
        self._told(refused, "refused")
        return denied(_denial(refused))

    async def _renewed(self, rule: LoginRule, value: Mapping[str, Any]) -> Answer:
        try:
            await self._renew(rule.credential)
        except MoatError as error:
            self._told(rule, "lost")
            hint = f"; {error.hint}" if error.hint else ""
            return _json(400, {"error": "invalid_grant", "error_description": f"moat: {error}{hint}"})
        self._told(rule, "renewed")
        return _json(200, value)


def endpoint(logins: Mapping[str, object], target: str) -> str | None:
    """The path of `logins` that some server would take `target` (origin-form) for.

    A fresh login is refused in whatever spelling its vendor would understand, and so is what nobody can read.
    """
    path = target.partition("?")[0]
    if path in logins:
        return path
    try:
        found = readings(path)
    except AmbiguousPathError:
        return next(iter(logins))
    folded = {known.casefold(): known for known in logins}
    spelled = (reading.casefold().rstrip("/") for reading in found)
    return next((folded[each] for each in spelled if each in folded), None)


def _tokens(rule: LoginRule) -> Mapping[str, Any]:
    """RFC 6749 §5.1."""
    value = {
        "token_type": "Bearer",
        "access_token": rule.access,
        "refresh_token": rule.refresh,
        "expires_in": LIFE,
    }
    return value | ({"scope": rule.scope} if rule.scope else {})


def _denial(rule: LoginRule) -> Denial:
    return Denial(
        code="login",
        reason=f"logging in at {rule.hosts[0]} from within the sandbox would leave a real token there",
        rule=f"grant {rule.credential} is the login of this run",
        hint=f"the run has a credential already; to change it, the user runs `{rule.again}` on the host",
    )


def _json(status: int, value: Mapping[str, Any]) -> Answer:
    body = json.dumps(value).encode()
    return Answer(status, ((b"Content-Length", b"%d" % len(body)), *_JSON), body)


def _fields(body: bytes) -> Mapping[str, Any]:
    """A form or a JSON object; empty when it is neither, or too long to be honest."""
    if len(body) > LONGEST:
        return {}
    text = body.decode("utf-8", "replace")
    if text.lstrip().startswith("{"):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}
    try:
        return dict(parse_qsl(text, max_num_fields=64))
    except ValueError:
        return {}
