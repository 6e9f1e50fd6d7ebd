"""The `ssh:<host>` grant: nothing for the proxy to inject and no placeholder. See `moat.runtime.ssh`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moat.grants import CredentialInfo, InjectionRule
from moat.vault.providers import entry


@dataclass(frozen=True, slots=True)
class Ssh:
    name: str = "ssh"

    @property
    def aliases(self) -> tuple[str, ...]:
        return entry(self.name).aliases

    @property
    def hosts(self) -> tuple[str, ...]:
        return entry(self.name).hosts

    def placeholder(self, info: CredentialInfo, token: str) -> str:
        del info, token
        return ""

    def rules(self, info: CredentialInfo, placeholder: str) -> tuple[InjectionRule, ...]:
        del info, placeholder
        return ()

    def environment(self, info: CredentialInfo, placeholder: str) -> Mapping[str, str]:
        del info, placeholder
        return {}

    def files(self, info: CredentialInfo, placeholder: str) -> tuple[tuple[str, bytes], ...]:
        del info, placeholder
        return ()


PROVIDER = Ssh()
