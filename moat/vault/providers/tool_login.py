"""A vendor whose credential is an API key, or the login of its own tool, which is good at other hosts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moat.dataclass import dataclass
from moat.grants import CredentialInfo, CredentialKind, InjectionRule
from moat.vault.providers.declared import Declared, plain
from moat.vault.providers.model import Held


@dataclass(frozen=True, slots=True)
class KeyOrLogin(Declared):
    login_hosts: tuple[str, ...] = ()  # that may get the login; a key goes to `hosts`

    def rules(self, info: CredentialInfo, placeholder: str) -> tuple[InjectionRule, ...]:
        if info.kind is not CredentialKind.OAUTH:
            return Declared.rules(self, info, placeholder)
        rule = InjectionRule(
            credential=info.name, hosts=self.login_hosts, header="authorization", placeholder=placeholder
        )
        return (rule,)

    def environment(self, held: Sequence[Held]) -> Mapping[str, str]:
        """A tool with a login has it in a file; a variable would be taken for a key."""
        return {} if plain(held).info.kind is CredentialKind.OAUTH else Declared.environment(self, held)
