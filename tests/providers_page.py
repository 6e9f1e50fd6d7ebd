"""Writes docs/providers.md from the declarations: `python -m tests.providers_page`. A test compares the two."""

from __future__ import annotations

from moat.grants import Surface
from moat.vault.providers import Entry, entries, provider
from moat.vault.providers.declared import Declared, Injection
from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs/providers.md"
_HEAD = """\
# Providers

What can be granted; `moat grant providers` prints the same table. How granting works is in [grants.md](grants.md). The tables are made
from the declarations in the code.

A credential goes to the hosts named here, over HTTPS on port 443, and nowhere else. A grant also opens hosts under
`network.policy: strict`. Under `docker` and `embedded` it is the same.
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
| `validate.url`, `validate.method`, `validate.login` | a request that tells whether a credential is good (2xx; `${token}` in path or query stands for it), and where the JSON of its answer has your name |
| `where` | page on which the vendor makes tokens |

`moat grant providers --validate` checks all files, with line and column. A name that Moat has itself is not free. A credential stays bound
to the hosts that were named when it was granted: when you add one, grant again. Workspaces cannot bring providers.
"""


def page() -> str:
    rows = entries()
    vendors = [row for row in rows if row.injected]
    parts = [_HEAD, "## Vendors", ""]
    parts += ["| grant | for | the credential goes to | as | in the sandbox |", "|---|---|---|---|---|"]
    parts += [_row(row) for row in vendors]
    parts += ["", "## By name", "", "| grant | for |", "|---|---|"]
    parts += [f"| `{row.name}:<{row.scope}>` | {row.summary} |" for row in rows if not row.injected]
    return "\n".join([*parts, "", _TRIED + _OWN])


def _row(row: Entry) -> str:
    names = ", ".join(f"`{name}`" for name in (row.name, *row.aliases))
    hosts = ", ".join(f"`{host}`" for host in row.hosts)
    if row.scope:
        names += f", `{row.name}:<host>`"
        hosts += "; with a scope " + ", ".join(f"`{host.format(host='<host>')}`" for host in row.scoped)
    found = provider(row.name)
    if not isinstance(found, Declared):
        where = "[aws.md](aws.md)" if row.name == "aws" else "[grants.md](grants.md)"
        return f"| {names} | {row.summary} | {hosts} | see {where} | see {where} |"
    ways = "; ".join(_way(found.injection, surface) for surface in found.injection.surfaces)
    inside = ", ".join(f"`{name}`" for name in found.variables) or "files"
    return f"| {names} | {row.summary} | {hosts} | {ways} | {inside} |"


def _way(injection: Injection, surface: Surface) -> str:
    if surface != "header":
        return f"in the {surface}, for the placeholder"
    scheme = {
        "bearer": "`Bearer`",
        "token": "`token`",
        "basic": f"`Basic` ({injection.username})",
        "raw": "as it is",
    }
    return f"`{injection.header}`, {scheme[injection.scheme]}"


if __name__ == "__main__":
    PAGE.write_text(page())
