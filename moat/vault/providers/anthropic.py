"""The `anthropic` grant: a Claude subscription (OAuth bearer token) or an API key.

The two kinds need different headers and different placeholders. A subscription is recognised by
Claude Code through `~/.claude/.credentials.json`; the variable CLAUDE_CODE_OAUTH_TOKEN is not set,
because it makes Claude Code forget the plan. An API key is a variable.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence

from moat.dataclass import dataclass
from moat.grants import CredentialInfo, CredentialKind, InjectionRule, LoginRule
from moat.vault.providers.model import Entry, Held

OAUTH_PREFIX = "sk-ant-oat"
API_KEY_PREFIX = "sk-ant-"
OAUTH_BETA = "oauth-2025-04-20"
API_HOST = "api.anthropic.com"
LOGIN_HOSTS = ("platform.claude.com", "console.anthropic.com")
# A real expiry would make Claude Code renew its login again and again; the vault watches expiry.
_FAR_FUTURE = 365 * 24 * 3600  # seconds

_ENTRY = Entry(
    "anthropic",
    "Claude subscription or Anthropic API key",
    (API_HOST,),
    (API_HOST, "*.anthropic.com"),
    aliases=("claude",),
    marks=("sk-ant-",),
)


@dataclass(frozen=True, slots=True)
class Anthropic:
    entry: Entry = _ENTRY

    def placeholder(self, info: CredentialInfo, token: str) -> str:
        if info.kind is CredentialKind.OAUTH:
            return f"sk-ant-oat01-moat-placeholder-not-a-real-token-{token}"
        # Claude Code asks once about a key whose last 20 characters it does not know: they stay the same.
        return f"sk-ant-api03-moat-{token}-placeholder-not-a-real-key"

    def rules(self, info: CredentialInfo, placeholder: str) -> tuple[InjectionRule, ...]:
        if info.kind is CredentialKind.OAUTH:
            rule = InjectionRule(
                credential=info.name,
                hosts=self.entry.hosts,
                header="authorization",
                scheme="bearer",
                placeholder=placeholder,
                strip=("x-api-key",),
                merge=(("anthropic-beta", OAUTH_BETA),),
            )
        else:
            rule = InjectionRule(
                credential=info.name,
                hosts=self.entry.hosts,
                header="x-api-key",
                scheme="raw",
                placeholder=placeholder,
                strip=("authorization",),
            )
        return (rule,)

    def logins(self, info: CredentialInfo, placeholder: str) -> tuple[LoginRule, ...]:
        """An API key has nothing to do with logins; who has no other may want one in the sandbox."""
        if info.kind is not CredentialKind.OAUTH:
            return ()
        rule = LoginRule(
            credential=info.name,
            hosts=LOGIN_HOSTS,
            path="/v1/oauth/token",
            access=placeholder,
            refresh=_refresh(placeholder),
            scope=" ".join(_scopes(info.metadata.get("scopes", ""))),
        )
        return (rule,)

    def environment(self, held: Sequence[Held]) -> Mapping[str, str]:
        one = held[0]
        return {} if one.info.kind is CredentialKind.OAUTH else {"ANTHROPIC_API_KEY": one.placeholder}

    def files(self, held: Sequence[Held]) -> tuple[tuple[str, bytes], ...]:
        info, placeholder = held[0].info, held[0].placeholder
        if info.kind is not CredentialKind.OAUTH:
            return ()
        login: dict[str, object] = {
            "accessToken": placeholder,
            "refreshToken": _refresh(placeholder),
            "expiresAt": int((time.time() + _FAR_FUTURE) * 1000),
            "scopes": _scopes(info.metadata.get("scopes", "")),
            "subscriptionType": info.metadata.get("subscription") or "max",
        }
        if tier := info.metadata.get("rate_limit_tier"):
            login["rateLimitTier"] = tier
        text = json.dumps({"claudeAiOauth": login})
        return ((".claude/.credentials.json", text.encode()),)


def _refresh(placeholder: str) -> str:
    """With it, Claude Code asks for a renewed login when its own is not taken, and goes on."""
    return placeholder.replace("-oat", "-ort", 1)


def _scopes(known: str) -> list[str]:
    """`user:inference` is what Claude Code insists on.

    A setup token has no more than that: claiming `user:profile` for it would make Claude Code ask for a
    profile that the API refuses.
    """
    return sorted({"user:inference", *known.split()})


PROVIDER = Anthropic()
