"""What the grants of a run turn into: placeholders for the sandbox, rules and open hosts for the proxy.

Only what may be shown of a credential is read here; the secret stays in the vault until the proxy has
allowed an exchange that needs it.
"""

from __future__ import annotations

import datetime as dt
import secrets
import string
from collections.abc import Iterable, Sequence
from dataclasses import replace
from shlex import quote

from moat.config import McpServer
from moat.errors import GrantError, MissingGrantsError
from moat.grants import CredentialInfo, Grant, LoginRule, Rule
from moat.runtime.given import Granted
from moat.runtime.sandbox import HomeFile
from moat.vault import Vault
from moat.vault.imported import kept_alive
from moat.vault.providers import Held, again, canonical, check_name, command, entry, grant_hosts, provider

_TOKEN = string.ascii_letters + string.digits


def unique(names: Iterable[str]) -> tuple[str, ...]:
    """Canonical names, each once, in order. Raises GrantError for what is not a grant name."""
    return tuple(dict.fromkeys(canonical(name) for name in names))


def check(
    vault: Vault, names: Iterable[str], servers: Iterable[McpServer] = ()
) -> tuple[CredentialInfo, ...]:
    """What is known of each credential. Raises one MissingGrantsError that lists every problem and its fix.

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
            info = kept_alive(vault, vault.info(name))
        except GrantError:
            problems.append(f"missing grant: {name}")
            fixes.append(urls.get(name, command(name)))
            continue
        if info.expired(dt.datetime.now(dt.UTC)):
            problems.append(f"credential expired: {name}")
            fixes.append(urls.get(name, command(name)))
        found.append(info)
    if problems:
        raise MissingGrantsError("\n".join(problems), fixes=fixes)
    return tuple(found)


def prepare(vault: Vault, names: Iterable[str], servers: Iterable[McpServer] = ()) -> Granted:
    """Placeholders and rules of a run. A part of each is random, so that a leak tells its run."""
    rules: list[Rule] = []
    held: dict[str, list[Held]] = {}
    hosts: list[str] = []
    logins: list[LoginRule] = []
    for info in check(vault, names, servers):
        kind = Grant.parse(info.name).name
        if not entry(kind).injected:
            continue
        token = "".join(secrets.choice(_TOKEN) for _ in range(16))
        one = Held(info, provider(kind).placeholder(info, token))
        rules += _bound(info, provider(kind).rules(info, one.placeholder))
        logins += (replace(rule, again=again(info)) for rule in provider(kind).logins(info, one.placeholder))
        held.setdefault(kind, []).append(one)
        hosts += grant_hosts(info.name)
    env: dict[str, str] = {}
    files: list[HomeFile] = []
    for kind, credentials in held.items():
        env |= provider(kind).environment(credentials)
        files += [HomeFile(path, data) for path, data in provider(kind).files(credentials)]
    return Granted(tuple(rules), env, tuple(files), tuple(hosts), tuple(logins))


def _bound(info: CredentialInfo, rules: Sequence[Rule]) -> Sequence[Rule]:
    """`rules`, none of which takes the credential further than what was said when it was granted.

    A provider of the user's may have been edited since; whoever can edit it must not move a secret.
    """
    strange = {host for rule in rules for host in rule.hosts} - set(info.hosts)
    if strange:
        raise GrantError(
            f"{info.name} was granted for {', '.join(info.hosts)}, and its provider now says "
            f"{', '.join(sorted(strange))} too",
            hint=f"look at it, then grant again: `{command(info.name)}`",
        )
    return rules
