"""The `mcp:NAME` and `oauth:NAME` grants: the credential of one MCP server.

What is known of the server (its URL, the header that carries the credential) stands in the run's
configuration, so the rules and placeholders are made by `moat.runtime.mcp`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moat.grants import CredentialInfo, InjectionRule


@dataclass(frozen=True, slots=True)
class Mcp:
    name: str = "mcp"
    aliases: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()  # each credential has its own

    def placeholder(self, info: CredentialInfo, token: str) -> str:
        return f"moat-placeholder-{info.name.partition(':')[2]}-not-a-real-token-{token}"

    def rules(self, info: CredentialInfo, placeholder: str) -> tuple[InjectionRule, ...]:
        del info, placeholder
        return ()

    def environment(self, info: CredentialInfo, placeholder: str) -> Mapping[str, str]:
        del info, placeholder
        return {}

    def files(self, info: CredentialInfo, placeholder: str) -> tuple[tuple[str, bytes], ...]:
        del info, placeholder
        return ()


PROVIDER = Mcp()
