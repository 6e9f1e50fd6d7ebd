"""The `anthropic` grant: a Claude subscription (OAuth bearer token) or an API key.

The two kinds need different headers and different placeholders. A subscription is recognised by
Claude Code through `~/.claude/.credentials.json`; the variable CLAUDE_CODE_OAUTH_TOKEN is not set,
because it makes Claude Code forget the plan. An API key is a variable.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

from moat.grants import CredentialInfo, CredentialKind, InjectionRule
from moat.vault.providers import entry

OAUTH_PREFIX = "sk-ant-oat"
API_KEY_PREFIX = "sk-ant-"
OAUTH_BETA = "oauth-2025-04-20"
API_HOST = "api.anthropic.com"
# A real expiry would make Claude Code refresh with a token it does not have; the vault watches expiry.
_FAR_FUTURE = 365 * 24 * 3600  # seconds


@dataclass(frozen=True, slots=True)
class Anthropic:
    name: str = "anthropic"

    @property
    def aliases(self) -> tuple[str, ...]:
        return entry(self.name).aliases

    @property
    def hosts(self) -> tuple[str, ...]:
        return entry(self.name).hosts

    def placeholder(self, info: CredentialInfo, token: str) -> str:
        if info.kind is CredentialKind.OAUTH:
            return f"sk-ant-oat01-moat-placeholder-not-a-real-token-{token}"
        # Claude Code asks once about a key whose last 20 characters it does not know: they stay the same.
        return f"sk-ant-api03-moat-{token}-placeholder-not-a-real-key"

    def rules(self, info: CredentialInfo, placeholder: str) -> tuple[InjectionRule, ...]:
        if info.kind is CredentialKind.OAUTH:
            rule = InjectionRule(
                credential=info.name,
                hosts=self.hosts,
                header="authorization",
                scheme="bearer",
                placeholder=placeholder,
                strip=("x-api-key",),
                merge=(("anthropic-beta", OAUTH_BETA),),
            )
        else:
            rule = InjectionRule(
                credential=info.name,
                hosts=self.hosts,
                header="x-api-key",
                scheme="raw",
                placeholder=placeholder,
                strip=("authorization",),
            )
        return (rule,)

    def environment(self, info: CredentialInfo, placeholder: str) -> Mapping[str, str]:
        return {} if info.kind is CredentialKind.OAUTH else {"ANTHROPIC_API_KEY": placeholder}

    def files(self, info: CredentialInfo, placeholder: str) -> tuple[tuple[str, bytes], ...]:
        if info.kind is not CredentialKind.OAUTH:
            return ()
        login: dict[str, object] = {
            "accessToken": placeholder,
            "expiresAt": int((time.time() + _FAR_FUTURE) * 1000),
            "scopes": _scopes(info.metadata.get("scopes", "")),
            "subscriptionType": info.metadata.get("subscription") or "max",
        }
        if tier := info.metadata.get("rate_limit_tier"):
            login["rateLimitTier"] = tier
        text = json.dumps({"claudeAiOauth": login})
        return ((".claude/.credentials.json", text.encode()),)


def _scopes(known: str) -> list[str]:
    """`user:inference` is what Claude Code insists on.

    A setup token has no more than that: claiming `user:profile` for it would make Claude Code ask for a
    profile that the API refuses.
    """
    return sorted({"user:inference", *known.split()})


PROVIDER = Anthropic()
