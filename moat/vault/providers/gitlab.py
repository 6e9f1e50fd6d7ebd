"""The `gitlab` grant: a token of gitlab.com, or of another GitLab (`gitlab:git.example.com`).

It serves the API and git over HTTPS, which takes it as a password with any user name.
"""

from __future__ import annotations

from dataclasses import replace

from moat.dataclass import dataclass
from moat.grants import CredentialInfo, InjectionRule
from moat.vault.providers.declared import Declared, Injection, Shape
from moat.vault.providers.model import Check


@dataclass(frozen=True, slots=True)
class GitLab(Declared):
    def rules(self, info: CredentialInfo, placeholder: str) -> tuple[InjectionRule, ...]:
        """The API's header always; git asks for Basic, and only its requests bring an `Authorization`."""
        (api,) = Declared.rules(self, info, placeholder)
        git = replace(api, header="authorization", scheme="basic", username="oauth2")
        return api, git


PROVIDER = GitLab(
    name="gitlab",
    summary="GitLab API and git over HTTPS",
    hosts=("gitlab.com",),
    opens=("*.gitlab.com",),
    scoped=("{host}",),
    injection=Injection("private-token", "raw"),
    shape=Shape("glpat-", 26),
    marks=("glpat-",),
    sources=("GITLAB_TOKEN",),
    variables=("GITLAB_TOKEN",),
    check=Check("{host}", "/api/v4/user", login=("username",)),
    where="https://gitlab.com/-/user_settings/personal_access_tokens",
)
