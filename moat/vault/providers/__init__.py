"""What each grant means: hosts, placeholder, injection rules, and the files and variables of a run.

One file per vendor, which is imported when its name is used and not before; the user's own are YAML files
(`yaml_file`). A provider never sees a secret: it turns what is known of a credential and a per-run token into
placeholders and rules.
"""

from __future__ import annotations

import importlib
from shlex import quote
from typing import cast

from moat.errors import GrantError
from moat.grants import CredentialInfo, Grant
from moat.vault.origin import Origin
from moat.vault.profile import flag
from moat.vault.providers import aws, yaml_file
from moat.vault.providers.model import Check, Entry, Held, Provider

__all__ = [
    "Check",
    "Entry",
    "Held",
    "Provider",
    "again",
    "canonical",
    "check_name",
    "command",
    "entries",
    "entry",
    "grant_hosts",
    "provider",
    "vendor_of",
]

# Names and aliases, so that knowing a name imports no vendor.
_VENDORS = (
    "anthropic",
    "github",
    "openai",
    "gemini",
    "gitlab",
    "npm",
    "pypi",
    "aws",
    "brave-search",
    "datadog",
    "docker",
    "elevenlabs",
    "graphite",
    "linear",
    "sentry",
    "telegram",
    "vercel",
)
_ALIASES = {
    "claude": "anthropic",
    "docker-registry": "docker",
    "gh": "github",
    "codex": "openai",
    "google": "gemini",
    "gt": "graphite",
}
# Grants that are no vendor's: what they name stands behind the colon.
_SCOPED = (
    Entry(
        "ssh",
        "SSH to one host (git, ssh), signed for by your own agent",
        (),
        (),
        scope="host",
        injected=False,
    ),
    Entry("mcp", "A token or key of one MCP server", (), (), scope="name", positional=True, injected=False),
    Entry(
        "oauth",
        "A login to one MCP server, in the browser",
        (),
        (),
        scope="name",
        positional=True,
        injected=False,
    ),
)


def canonical(name: str) -> str:
    """The name that a grant is stored under: `claude` is `anthropic`. Scopes stay: `ssh:github.com`.

    Raises GrantError when `name` is not a grant name at all.
    """
    grant = Grant.parse(name)
    return str(Grant(_ALIASES.get(grant.name, grant.name), grant.scope))


def entries() -> tuple[Entry, ...]:
    """The whole table, the user's own providers too. Raises ConfigError when one of their files is wrong."""
    names = (*_VENDORS, *yaml_file.names())
    return (*(provider(name).entry for name in names), *_SCOPED)


def vendor_of(secret: str) -> str:
    """The vendor whose mark a credential bears; empty when it bears none."""
    rows = (provider(name).entry for name in _VENDORS)
    return next((row.name for row in rows if secret.startswith(row.marks)), "")


def entry(name: str) -> Entry:
    """The row of a provider, by name or alias. Raises GrantError with a suggestion."""
    for row in _SCOPED:
        if name == row.name:
            return row
    return provider(name).entry


def provider(name: str) -> Provider:
    """The provider of a grant, by name or alias. Raises GrantError with a suggestion."""
    known = _ALIASES.get(name, name)
    if known in _VENDORS:
        module = importlib.import_module(f"moat.vault.providers.{known.replace('-', '_')}")
        return cast("Provider", module.PROVIDER)
    if known in yaml_file.names():
        return yaml_file.load(known)
    raise _unknown(name)


def check_name(name: str) -> str:
    """`name` when it is one that a provider can have granted. Raises GrantError."""
    grant = Grant.parse(name)
    row = entry(grant.name)
    if row.scope and row.scope_needed and not grant.scope:
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
        return " ".join(["moat grant", grant.name, *row.words(grant.scope), *flag()])
    return " ".join(["moat grant", str(grant), *flag()])


def again(info: CredentialInfo) -> str:
    """The command that grants once more what is granted: `moat grant mcp acme --url https://…`."""
    words = [command(info.name)]
    if url := info.metadata.get("url"):
        words.append(f"--url {quote(url)}")
    if info.name == aws.NAME:
        words.append(aws.flags(info))
    if origin := Origin.of(info):
        words.append(origin.flags)
    return " ".join(words)


def grant_hosts(name: str) -> tuple[str, ...]:
    """Host patterns that a grant opens when `network.policy` is strict. Raises GrantError."""
    grant = Grant.parse(canonical(name))
    return entry(grant.name).opened(grant.scope)


def is_built_in(name: str) -> bool:
    """Whether a name or alias is Moat's own, and so not free for a provider of the user's."""
    return name in _VENDORS or name in _ALIASES or any(name == row.name for row in _SCOPED)


def _unknown(name: str) -> GrantError:
    known = [*_VENDORS, *_ALIASES, *(row.name for row in _SCOPED), *yaml_file.names()]
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=1)
    hint = f"did you mean `{near[0]}`?" if near else "`moat grant providers` lists them"
    return GrantError(f"no provider {name!r}", hint=hint)
