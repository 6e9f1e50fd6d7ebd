"""The `github` grant: one token for the API, gh, raw files and git over HTTPS.

Git's smart HTTP refuses `Bearer`; it wants Basic with the user `x-access-token`. Hosts with signed
URLs (objects, release assets) are left alone: a second authorisation makes them answer 400.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moat.dataclass import dataclass
from moat.grants import CredentialInfo, InjectionRule, LoginRule
from moat.vault.providers.model import Entry, Held

_API_HOSTS = ("api.github.com", "uploads.github.com", "raw.githubusercontent.com")
_GIT_HOSTS = ("github.com", "gist.github.com")
_BODY = 36  # characters after `ghp_`; gh checks the shape locally

_ENTRY = Entry(
    "github",
    "GitHub API, gh and git over HTTPS",
    (*_API_HOSTS, *_GIT_HOSTS),
    ("github.com", "*.github.com", "*.githubusercontent.com"),
    aliases=("gh",),
    marks=("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
)


@dataclass(frozen=True, slots=True)
class GitHub:
    entry: Entry = _ENTRY

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

    def logins(self, info: CredentialInfo, placeholder: str) -> tuple[LoginRule, ...]:
        del info, placeholder
        return ()

    def environment(self, held: Sequence[Held]) -> Mapping[str, str]:
        placeholder = held[0].placeholder
        return {"GH_TOKEN": placeholder, "GITHUB_TOKEN": placeholder, "GIT_TERMINAL_PROMPT": "0"}

    def files(self, held: Sequence[Held]) -> tuple[tuple[str, bytes], ...]:
        del held
        return ()


PROVIDER = GitHub()
