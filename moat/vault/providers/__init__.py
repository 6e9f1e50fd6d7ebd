"""What each grant means: hosts, placeholder, injection rules, and the files and variables of a run.

The table is data, so that listing providers imports none of them. A provider never sees a secret: it
turns what is known of a credential and a per-run token into placeholders and rules.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Protocol, cast

from moat.errors import GrantError
from moat.grants import CredentialInfo, Grant, InjectionRule


class Provider(Protocol):
    """One kind of grant. `token` is random per run ([A-Za-z0-9]), so that a leak tells its run."""

    @property
    def name(self) -> str: ...
    @property
    def aliases(self) -> tuple[str, ...]: ...
    @property
    def hosts(self) -> tuple[str, ...]:
        """Every host that may get the credential; no other ever does."""
        ...

    def placeholder(self, info: CredentialInfo, token: str) -> str:
        """The stand-in that the sandbox holds: right shape, obviously not real, with `token` in it."""
        ...

    def rules(self, info: CredentialInfo, placeholder: str) -> tuple[InjectionRule, ...]: ...

    def environment(self, info: CredentialInfo, placeholder: str) -> Mapping[str, str]:
        """Variables of the sandbox; placeholders only."""
        ...

    def files(self, info: CredentialInfo, placeholder: str) -> tuple[tuple[str, bytes], ...]:
        """Files of the sandbox, 0600: path relative to HOME, content; placeholders only."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the table: what can be said of a provider without importing it."""

    name: str
    aliases: tuple[str, ...]
    hosts: tuple[str, ...]  # that may get the credential
    opens: tuple[str, ...]  # host patterns that the grant opens under `network.policy: strict`
    summary: str
    module: str  # empty: there is nothing that a proxy could inject
    scope: str = ""  # what stands behind the colon of its grants (`host`); empty: nothing may
    positional: bool = False  # its scope is an argument of `moat grant`, not an option

    def words(self, scope: str) -> tuple[str, ...]:
        """How `moat grant` is told the scope: `--host github.com`, or the name alone."""
        return (scope,) if self.positional else (f"--{self.scope}", scope)


ENTRIES = (
    Entry(
        "anthropic",
        ("claude",),
        ("api.anthropic.com",),
        ("api.anthropic.com", "*.anthropic.com"),
        "Claude subscription or Anthropic API key",
        "moat.vault.providers.anthropic",
    ),
    Entry(
        "github",
        ("gh",),
        (
            "api.github.com",
            "uploads.github.com",
            "github.com",
            "gist.github.com",
            "raw.githubusercontent.com",
        ),
        ("github.com", "*.github.com", "*.githubusercontent.com"),
        "GitHub API, gh and git over HTTPS",
        "moat.vault.providers.github",
    ),
    Entry(
        "ssh",
        (),
        (),
        (),
        "SSH to one host (git, ssh), signed for by your own agent",
        "",
        scope="host",
    ),
    Entry(
        "mcp",
        (),
        (),
        (),
        "A token or key of one MCP server",
        "",
        scope="name",
        positional=True,
    ),
    Entry(
        "oauth",
        (),
        (),
        (),
        "A login to one MCP server, in the browser",
        "",
        scope="name",
        positional=True,
    ),
)


def canonical(name: str) -> str:
    """The name that a grant is stored under: `claude` is `anthropic`. Scopes stay: `ssh:github.com`.

    Raises GrantError when `name` is not a grant name at all.
    """
    grant = Grant.parse(name)
    for entry in ENTRIES:
        if grant.name in entry.aliases:
            return str(Grant(entry.name, grant.scope))
    return str(grant)


def entry(name: str) -> Entry:
    """The table row of a provider, by name or alias. Raises GrantError with a suggestion."""
    for row in ENTRIES:
        if name == row.name or name in row.aliases:
            return row
    known = [word for row in ENTRIES for word in (row.name, *row.aliases)]
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean `{near[0]}`?" if near else "`moat grant providers` lists them"
    raise GrantError(f"no provider {name!r}", hint=hint)


def check_name(name: str) -> str:
    """`name` when it is one that a provider of the table can have granted. Raises GrantError."""
    grant = Grant.parse(name)
    row = entry(grant.name)
    if row.scope and not grant.scope:
        raise GrantError(
            f"{name} needs a {row.scope}: {name}:<{row.scope}>", hint=f"`moat grant {name} --help`"
        )
    if grant.scope and not row.scope:
        raise GrantError(f"{name!r} is not a grant name", hint=f"did you mean `{row.name}`?")
    return name


def command(name: str) -> str:
    """The command that makes a grant: `moat grant github`, `moat grant ssh --host github.com`."""
    grant = Grant.parse(canonical(name))
    if grant.scope and (row := entry(grant.name)).scope:
        return " ".join(["moat grant", grant.name, *row.words(grant.scope)])
    return f"moat grant {grant}"


def provider(name: str) -> Provider:
    """The provider of a grant, by name or alias. Raises GrantError with a suggestion."""
    return cast("Provider", importlib.import_module(entry(name).module).PROVIDER)


def grant_hosts(name: str) -> tuple[str, ...]:
    """Host patterns that a grant opens when `network.policy` is strict. Raises GrantError."""
    return entry(name).opens
