"""Writes docs/providers.md from the declarations: `python -m tests.providers_page`. A test compares the two."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Sequence

from moat.grants import CredentialInfo, CredentialKind, InjectionRule, Rule
from moat.vault.found import places
from moat.vault.providers import Entry, Held, Provider, entries, provider
from moat.vault.providers.declared import Declared
from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs/providers.md"
_HEAD = """\
# Providers

What can be granted; `moat grant providers` prints the same table. How granting works is in [grants.md](grants.md). The tables are made
from the declarations in the code.

A credential goes to the hosts named here, over HTTPS on port 443, and nowhere else. A grant also opens hosts under
`network.policy: strict`. Under `docker` and `embedded` it is the same.
"""
_TOKEN = "TOKENTOKEN"
_WAYS = """\
## On the way

What the proxy makes of a credential, and what stands for it in the sandbox. Where a tool there wants to renew a login itself, it gets its placeholders once
more.
"""
_PLACES = """\
## On this machine

Where `moat grant` looks for a credential that you have. On macOS the login of Claude Code is in the keychain.
"""
_TRIED = """\
## Tried with

The suite runs these clients in sandboxes of both runtimes, against stand-ins of the vendors over TLS that take the real credential and nothing
else. For the vendors that are not named it sends their requests with `curl`.

| grant | client | does |
|---|---|---|
| `anthropic` | Claude Code | conversations, plugins, MCP servers: [claude.md](claude.md) |
| `aws` | `boto3`, `aws`, `curl --aws-sigv4` | S3, DynamoDB and STS: [aws.md](aws.md) |
| `codex` | Codex, with an API key and (in `embedded`) with its ChatGPT login | a prompt, a command of the model: [agents.md](agents.md) |
| `docker` | `skopeo` (in `embedded`) | push, pull, copy, list and delete |
| `gemini` | Gemini CLI (in `embedded`), with an API key and with its Google login | a prompt, a command of the model: [agents.md](agents.md) |
| `github` | `git` | clone with submodules, shallow and partial clones, fetch, push, forced push, of private repositories |
| `github` | `gh` | log in, API, clone a repository, make and list pull requests, upload to a release and download from it |
| `gitlab` | `git` | list a private repository |
| `graphite` | `gt` (in `embedded`) | log in, make a stack, push and submit it |
| `npm` | `npm` (in `embedded`) | who it is, publish, tag, view and install, at two registries, of which one lies below a path and has a scope |
| `pypi` | `twine`, `uv` | upload |

"""
_OWN = """\
## Providers of your own

A file `~/.moat/providers/NAME.yaml` (writable by you alone) makes `moat grant NAME` work like the built-in ones:

```yaml file=~/.moat/providers/acme.yaml
summary: Acme API
hosts: [api.acme.example, "*.api.acme.example"]
inject: {header: x-acme-key, scheme: raw}
placeholder: {prefix: acme_, length: 64}
env: [ACME_KEY]
source_env: [ACME_KEY]
validate: {url: "https://api.acme.example/me", login: user.name}
```

| key | |
|---|---|
| `summary` | one line for lists |
| `hosts` | that may get the credential: `host`, or `*.host` for everything below it. The only key that must be there |
| `opens` | more hosts that `network.policy: strict` opens |
| `inject.header` | header that carries it; `authorization` if not said |
| `inject.scheme` | `bearer` (if not said), `token`, `basic`, or `raw` for the credential as it is |
| `inject.username` | user name for `basic` |
| `inject.surfaces` | where a credential goes out, of `header` (if nothing is said), `path`, `query`, `body` and `websocket`. Anywhere but in the header, it takes the place of the placeholder: [network.md](network.md#credentials-in-path-query-and-body) |
| `inject.occurrences` | how often in path, query and body of one request, 1 to 100; once if not said |
| `placeholder.prefix`, `placeholder.length` | shape of what the sandbox holds, when a tool checks it; length 64 to 512 |
| `env` | variables of the sandbox that hold the placeholder |
| `source_env` | variables of your shell that `moat grant` looks into |
| `validate.url`, `validate.method`, `validate.login` | a request, to one of `hosts`, that tells whether a credential is good (2xx; `${token}` in path or query stands for it), and where the JSON of its answer has your name |
| `where` | page on which the vendor makes tokens |

`moat grant providers --validate` checks all files, with line and column. A name that Moat has itself is not free. A credential stays bound
to the hosts that were named when it was granted: when you add one, grant again. Workspaces cannot bring providers.
"""


_KINDS = {
    "anthropic": (CredentialKind.API_KEY, CredentialKind.OAUTH),
    "openai": (CredentialKind.API_KEY, CredentialKind.OAUTH),
    "gemini": (CredentialKind.API_KEY, CredentialKind.OAUTH),
    "aws": (CredentialKind.ROLE,),
}
_FACTS = {"account": "1", "plan": "", "region": "us-east-1"}  # that some providers know of a credential
# What is done by code of its own, not by a declared request.
_CHECKS = {
    ("anthropic", CredentialKind.API_KEY): "`POST api.anthropic.com/v1/messages`, for one token",
    ("anthropic", CredentialKind.OAUTH): "the same",
    ("github", CredentialKind.TOKEN): "`GET api.github.com/user`",
    ("openai", CredentialKind.OAUTH): "`GET chatgpt.com`, what is left of the plan",
    ("gemini", CredentialKind.OAUTH): "renewed once",
    ("aws", CredentialKind.ROLE): "`AssumeRole`, `GetCallerIdentity`",
    ("docker", CredentialKind.TOKEN): "a token is bought, or `GET /v2/`",
}
_RENEWALS = {
    ("anthropic", CredentialKind.OAUTH): "an imported one by Claude Code on this machine",
    ("openai", CredentialKind.OAUTH): "by Codex on this machine",
    ("gemini", CredentialKind.OAUTH): "by Moat",
    ("aws", CredentialKind.ROLE): "by Moat, before the keys end",
    ("docker", CredentialKind.TOKEN): "tokens by Moat, for each request's scope",
}


def page() -> str:
    rows = entries()
    vendors = [row for row in rows if row.injected]
    parts = [_HEAD, "## Vendors", ""]
    parts += ["| grant | for | the credential goes to |", "|---|---|---|"]
    parts += [_row(row) for row in vendors]
    parts += ["", _WAYS]
    parts += ["| grant | goes out as | the sandbox holds | checked with | renewed |", "|---|---|---|---|---|"]
    parts += [line for row in vendors for line in _ways(row)]
    parts += ["", _PLACES, "| grant | looked for in |", "|---|---|"]
    parts += [f"| `{row.name}` | {_listed(places(row))} |" for row in vendors]
    parts += ["", "## By name", "", "| grant | for |", "|---|---|"]
    parts += [f"| `{row.name}:<{row.scope}>` | {row.summary} |" for row in rows if not row.injected]
    return "\n".join([*parts, "", _TRIED + _OWN])


def _row(row: Entry) -> str:
    names = ", ".join(f"`{name}`" for name in (row.name, *row.aliases))
    hosts = ", ".join(f"`{host}`" for host in row.hosts)
    if row.scope:
        names += f", `{row.name}:<host>`"
        hosts += "; with a scope " + ", ".join(f"`{host.format(host='<host>')}`" for host in row.scoped)
    return f"| {names} | {row.summary} | {hosts} |"


def _ways(row: Entry) -> Iterator[str]:
    found = provider(row.name)
    for kind in _KINDS.get(row.name, (CredentialKind.TOKEN,)):
        info = CredentialInfo(
            name=row.name,
            kind=kind,
            hosts=row.hosts,
            created_at=dt.datetime.now(dt.UTC),
            metadata=_FACTS,
        )
        placeholder = found.placeholder(info, _TOKEN)
        name = f"`{row.name}`" + (f" ({kind})" if row.name in _KINDS else "")
        cells = (
            "; ".join(_way(rule, row) for rule in found.rules(info, placeholder)),
            _inside(found, Held(info, placeholder)),
            _CHECKS.get((row.name, kind)) or _check(found),
            _RENEWALS.get((row.name, kind), ""),
        )
        yield f"| {name} | {' | '.join(cells)} |"


def _way(rule: Rule, row: Entry) -> str:
    if not isinstance(rule, InjectionRule):
        return "a signature"
    schemes = {"bearer": "`Bearer`", "token": "`token`", "raw": "as it is"}
    scheme = schemes.get(rule.scheme, f"`Basic` ({rule.username or 'your user name'})")
    ways = ", ".join(
        f"`{rule.header}`: {scheme}" if surface == "header" else f"in the {surface}, for the placeholder"
        for surface in rule.surfaces
    )
    return ways if rule.hosts == row.hosts else f"{ways}, to {_listed(rule.hosts)}"


def _inside(found: Provider, held: Held) -> str:
    variables = [
        f"`{name}={re.sub(f'(moat-?)?{_TOKEN}.*', 'moat…', value)}`"
        for name, value in found.environment([held]).items()
        if _TOKEN in value
    ]
    return ", ".join([*variables, *(f"`~/{path}`" for path, _ in found.files([held]))]) or "nothing"


def _check(found: Provider) -> str:
    check = found.check_of({}) if isinstance(found, Declared) else None
    if check is None:
        return "nothing: the vendor has no request for it"
    host = check.host.format(host=found.entry.hosts[0].removeprefix("*."))
    return f"`{check.method} {host}{check.path}`"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "nothing"


if __name__ == "__main__":
    PAGE.write_text(page())
