"""The `docker` grant: a login to a registry of container images, Docker Hub or another (`docker:ghcr.io`).

The sandbox holds nothing of it, not even a placeholder: a registry that gets its token with every request
asks no client for a login. How it wants its token was asked when it was granted, and is kept as metadata.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moat.dataclass import dataclass
from moat.grants import CredentialInfo, InjectionRule, LoginRule
from moat.vault.providers.model import Entry, Held
from moat.vault.registry.service import Service

NAME = "docker"
HUB = "registry-1.docker.io"
HUB_REALM = "auth.docker.io"
USERNAME, REALM, SERVICE = "username", "realm", "service"  # metadata
_FILES = "production.cloudflare.docker.com"  # of Docker Hub: layers are redirected to it, without the token

ENTRY = Entry(
    NAME,
    "A registry of container images: Docker Hub, or another",
    (HUB, HUB_REALM),
    (HUB, HUB_REALM, _FILES),
    aliases=("docker-registry",),
    scope="host",
    scope_needed=False,
    scoped=("{host}",),
)


@dataclass(frozen=True, slots=True)
class Docker:
    entry: Entry = ENTRY

    def placeholder(self, info: CredentialInfo, token: str) -> str:
        del info
        return f"moat{token}"

    def rules(self, info: CredentialInfo, placeholder: str) -> tuple[InjectionRule, ...]:
        """The proxy equips requests to the registry alone; its token service is asked from the host."""
        rule = InjectionRule(
            credential=info.name,
            hosts=info.hosts[:1],
            header="authorization",
            scheme="bearer" if info.metadata.get(REALM) else "basic",
            username=username_of(info),
            placeholder=placeholder,
            tokens="registry" if info.metadata.get(REALM) else "",
        )
        return (rule,)

    def logins(self, info: CredentialInfo, placeholder: str) -> tuple[LoginRule, ...]:
        del info, placeholder
        return ()

    def environment(self, held: Sequence[Held]) -> Mapping[str, str]:
        del held
        return {}

    def files(self, held: Sequence[Held]) -> tuple[tuple[str, bytes], ...]:
        del held
        return ()


def service_of(info: CredentialInfo) -> Service:
    """What sells the tokens of a granted registry."""
    return Service(info.metadata.get(REALM, ""), info.metadata.get(SERVICE, ""))


def username_of(info: CredentialInfo) -> str:
    return info.metadata.get(USERNAME, "")


PROVIDER = Docker()
