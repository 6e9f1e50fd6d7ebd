"""`moat grant …`: store a credential; list, show; what can be granted."""

from __future__ import annotations

import datetime as dt
import importlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from moat import surroundings
from moat.cli import own_place
from moat.cli.common import add_credential_options
from moat.cli.menu import AskPassphrase, Console
from moat.cli.output import emit, emit_json, table
from moat.cli.parser import Parser
from moat.errors import EXIT_USAGE, ConfigError, GrantError, UsageError
from moat.grants import CredentialInfo
from moat.paths import Home
from moat.runtime import known
from moat.vault import Vault, open_vault
from moat.vault.index import describe, timestamp
from moat.vault.origin import Origin
from moat.vault.providers import Entry, check_name, entries, entry, provider, yaml_file
from moat.vault.providers.declared import Declared

_WIZARDS = {
    "anthropic": "moat.cli.grant_anthropic",
    "aws": "moat.cli.grant_aws",
    "docker": "moat.cli.grant_docker",
    "github": "moat.cli.grant_github",
    "mcp": "moat.cli.grant_mcp",
    "oauth": "moat.cli.grant_oauth",
    "ssh": "moat.cli.grant_ssh",
}
_USAGE = """\
usage: moat grant                          choose from a menu
       moat grant <provider> [options]     store a credential that runs may use
       moat grant list [--json]            what is stored
       moat grant show NAME [--json]       one of them, without its secret
       moat grant providers [--json]       what can be granted

`moat grant <provider> --help` tells more. `moat revoke NAME` forgets a credential.
"""


def main(argv: Sequence[str]) -> int:
    places = known.workspaces(Home.from_environment())
    surroundings.leave(*places)
    own_place.warn(*places)
    if not argv:
        return _menu()
    if argv[0] in {"-h", "--help", "help"}:
        emit(_USAGE.rstrip())
        return 0
    if argv[0] in _ACTIONS:
        return _ACTIONS[argv[0]](argv[1:])
    if argv[0].startswith("-"):
        raise UsageError(f"unknown option {argv[0]}", hint="`moat grant --help`")
    name, _, scope = argv[0].partition(":")  # `ssh:github.com` is short for `ssh --host github.com`
    row = entry(name)
    scoped = row.words(check_name(argv[0]).partition(":")[2]) if scope else ()
    return _wizard(row.name)([*scoped, *argv[1:]])


def _menu() -> int:
    if not Console().terminal:
        raise UsageError("grant what?", hint="`moat grant anthropic`, or see `moat grant providers`")
    from moat.cli import grant_menu

    return grant_menu.run(_wizard)


def _wizard(name: str) -> Callable[[Sequence[str]], int]:
    """The `main` of a provider's wizard; providers that are nothing but a token share one."""
    if name in _WIZARDS:
        main: Callable[[Sequence[str]], int] = importlib.import_module(_WIZARDS[name]).main
        return main
    from moat.cli import grant_token

    declared = provider(name)
    assert isinstance(declared, Declared)
    return lambda argv: grant_token.main(declared, argv)


def _list(argv: Sequence[str]) -> int:
    parser = Parser(prog="moat grant list", description="List stored credentials.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_credential_options(parser)
    options = parser.parse_args(argv)
    vault = open_vault(Home.from_environment())
    found = vault.list()
    if options.json:
        emit_json([facts(vault, info) for info in found])
    elif found:
        emit(table(("NAME", "KIND", "STORE", "CREATED", "EXPIRES"), [_row(vault, info) for info in found]))
    else:
        emit("Nothing is granted. `moat grant anthropic` stores a credential for Claude Code.")
    return 0


def _show(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="moat grant show", description="Show what is known of a credential; its secret if asked for."
    )
    parser.add_argument("name", help="a name of `moat grant list`")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--json", action="store_true", help="print JSON")
    what.add_argument("--show-token", action="store_true", help="print the secret; at a terminal only")
    add_credential_options(parser)
    options = parser.parse_args(argv)
    vault = open_vault(Home.from_environment(), passphrase=AskPassphrase.where_possible())
    if options.show_token:
        return _show_token(vault, options.name)
    known = facts(vault, vault.info(options.name))
    if options.json:
        emit_json(known)
        return 0
    known |= {"hosts": ", ".join(known["hosts"]), "expired": "yes" if known["expired"] else "no"}
    known |= {"expires_at": known["expires_at"] or "not known", "store": known["store"] or "-"}
    known |= {key: value.replace("\n", ", ") for key, value in known.pop("metadata").items()}
    width = max(map(len, known)) + 1
    for key, value in known.items():
        emit(f"{key.replace('_', ' ') + ':':<{width}} {value}")
    return 0


def _show_token(vault: Vault, name: str) -> int:
    """A pipe, a log or an agent's tool call never gets it."""
    console = Console()
    if vault.store(name) is None:
        origin = Origin.of(vault.info(name))
        kept = f"it is kept in {origin.shown}" if origin else "your SSH agent keeps the key"
        raise GrantError(f"{name} has no secret of its own", hint=kept)
    if not console.terminal:
        raise UsageError("a secret is shown at a terminal only", hint="there is no flag to get around this")
    if not console.confirm(f"Show the secret of {name} on this screen?", default=False):
        return 1
    console.print(vault.get(name).secret.reveal())
    return 0


def _providers(argv: Sequence[str]) -> int:
    parser = Parser(prog="moat grant providers", description="List what can be granted.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--validate", action="store_true", help="check your own providers (~/.moat/providers/*.yaml)"
    )
    chosen = parser.parse_args(argv)
    if chosen.validate:
        return _validate_own(json=chosen.json)
    rows = entries()
    if chosen.json:
        emit_json([_described(row) for row in rows])
        return 0
    lines = [
        (row.name, ", ".join(row.aliases), row.summary, ", ".join(row.hosts) or "its own host")
        for row in rows
    ]
    emit(table(("NAME", "ALIAS", "FOR", "CREDENTIAL GOES TO"), lines))
    return 0


def _described(row: Entry) -> dict[str, Any]:
    return {
        "name": row.name,
        "aliases": list(row.aliases),
        "summary": row.summary,
        "credential_hosts": list(row.hosts),
        "opens_hosts": list(row.opens),
    }


def _validate_own(*, json: bool) -> int:
    names, wrong = yaml_file.names(), yaml_file.problems()
    if json:
        emit_json({"providers": list(names), "problems": list(wrong)})
        return EXIT_USAGE if wrong else 0
    if wrong:
        raise ConfigError(wrong, hint="the keys are described in docs/providers.md")
    emit(
        f"{len(names)} of your own, all well: {', '.join(names)}"
        if names
        else "You have no providers of your own."
    )
    return 0


def facts(vault: Vault, info: CredentialInfo) -> dict[str, Any]:
    """Everything that may be shown of a stored credential, as JSON values."""
    known = describe(info)
    return known | {"expired": info.expired(_now()), "store": _store(vault, info)}


def _row(vault: Vault, info: CredentialInfo) -> tuple[str, ...]:
    expires = "-" if info.expires_at is None else timestamp(info.expires_at)
    if info.expired(_now()):
        expires += " (expired)"
    return info.name, info.kind.value, _store(vault, info) or "-", timestamp(info.created_at), expires


def _store(vault: Vault, info: CredentialInfo) -> str | None:
    """Where the secret is: `keyring`, `file`, or the kind of place outside of the vault; None: nowhere."""
    origin = Origin.of(info)
    return origin.kind if origin else vault.store(info.name)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


_ACTIONS: Mapping[str, Callable[[Sequence[str]], int]] = MappingProxyType(
    {"list": _list, "show": _show, "providers": _providers}
)
