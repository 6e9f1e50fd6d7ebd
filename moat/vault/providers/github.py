"""The `github` grant: one token for the API, gh, raw files and git over HTTPS.

Git's smart HTTP refuses `Bearer`; it wants Basic with the user `x-access-token`. Hosts with signed
URLs (objects, release assets) are left alone: a second authorisation makes them answer 400.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moat.grants import CredentialInfo, InjectionRule
from moat.vault.providers import entry

_API_HOSTS = ("api.github.com", "uploads.github.com", "raw.githubusercontent.com")
_GIT_HOSTS = ("github.com", "gist.github.com")
_BODY = 36  # characters after `ghp_`; gh checks the shape locally


@dataclass(frozen=True, slots=True)
class GitHub:
    name: str = "github"

    @property
    def aliases(self) -> tuple[str, ...]:
        return entry(self.name).aliases

    @property
    def hosts(self) -> tuple[str, ...]:
        return entry(self.name).hosts

    def placeholder(self, info: CredentialInfo, token: str) -> str:
        del info
        return "ghp_" + f"moat{token}".ljust(_BODY, "0")[:_BODY]

    def rules(self, info: CredentialInfo, placeholder: str) -> tuple[InjectionRule, ...]:
        bearer = InjectionRule(
            credential=info.name,
            hosts=_API_HOSTS,
            header="authorization",
            scheme="bearer",
            placeholder=placeholder,
        )
        basic = InjectionRule(
            credential=info.name,
            hosts=_GIT_HOSTS,
            header="authorization",
            scheme="basic",
            username="x-access-token",
            placeholder=placeholder,
        )
        return (bearer, basic)

    def environment(self, info: CredentialInfo, placeholder: str) -> Mapping[str, str]:
        del info
        return {"GH_TOKEN": placeholder, "GITHUB_TOKEN": placeholder, "GIT_TERMINAL_PROMPT": "0"}

    def files(self, info: CredentialInfo, placeholder: str) -> tuple[tuple[str, bytes], ...]:
        del info, placeholder
        return ()


PROVIDER = GitHub()
