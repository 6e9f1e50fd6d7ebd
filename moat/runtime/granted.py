"""What the grants of a run turn into: placeholders for the sandbox, rules and open hosts for the proxy.

Only what may be shown of a credential is read here; the secret stays in the vault until the proxy has
allowed an exchange that needs it.
"""

from __future__ import annotations

import datetime as dt
import secrets
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from shlex import quote

from moat.config import McpServer
from moat.errors import GrantError
from moat.grants import CredentialInfo, InjectionRule
from moat.runtime.sandbox import HomeFile
from moat.vault import Vault
from moat.vault.providers import canonical, check_name, command, entry, grant_hosts, provider

_TOKEN = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class Granted:
    rules: tuple[InjectionRule, ...]
    env: Mapping[str, str]  # placeholders only
    files: tuple[HomeFile, ...]  # placeholders only
    hosts: tuple[str, ...]  # patterns that `network.policy: strict` opens


NOTHING = Granted((), {}, (), ())


def with_more(given: Granted, *, rules: tuple[InjectionRule, ...], hosts: tuple[str, ...]) -> Granted:
    """`given` with rules and open hosts that do not come from a provider's table."""
    return replace(given, rules=(*given.rules, *rules), hosts=(*given.hosts, *hosts))


def unique(names: Iterable[str]) -> tuple[str, ...]:
    """Canonical names, each once, in order. Raises GrantError for what is not a grant name."""
    return tuple(dict.fromkeys(canonical(name) for name in names))


def check(
    vault: Vault, names: Iterable[str], servers: Iterable[McpServer] = ()
) -> tuple[CredentialInfo, ...]:
    """What is known of each credential. Raises one GrantError that lists every problem and its fix.

    `servers`: the MCP servers that some of them are for.
    """
    urls = {
        server.grant: f"{command(server.grant)} --url {quote(server.url)}"
        for server in servers
        if server.grant
    }
    found, problems, fixes = [], [], []
    for name in unique(names):
        check_name(name)
        try:
            info = vault.info(name)
        except GrantError:
            problems.append(f"missing grant: {name}")
            fixes.append(urls.get(name, command(name)))
            continue
        if info.expired(dt.datetime.now(dt.UTC)):
            problems.append(f"credential expired: {name}")
            fixes.append(urls.get(name, command(name)))
        found.append(info)
    if problems:
        raise GrantError("\n".join(problems), hint="\n".join(f"run `{fix}`" for fix in fixes))
    return tuple(found)


def prepare(vault: Vault, names: Iterable[str], servers: Iterable[McpServer] = ()) -> Granted:
    """Placeholders and rules of a run. The token in them is random, so that a leak tells its run."""
    token = "".join(secrets.choice(_TOKEN) for _ in range(16))
    rules: list[InjectionRule] = []
    env: dict[str, str] = {}
    files: list[HomeFile] = []
    hosts: list[str] = []
    for info in check(vault, names, servers):
        if not entry(info.name.partition(":")[0]).module:
            continue
        source = provider(info.name.partition(":")[0])
        placeholder = source.placeholder(info, token)
        rules += source.rules(info, placeholder)
        env |= source.environment(info, placeholder)
        files += [HomeFile(path, data) for path, data in source.files(info, placeholder)]
        hosts += grant_hosts(info.name.partition(":")[0])
    return Granted(tuple(rules), env, tuple(files), tuple(hosts))
