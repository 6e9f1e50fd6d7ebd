"""What the wizards of all providers share: open the vault first, check the credential, save, say where."""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import os
import re
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moat.cli.common import add_credential_options
from moat.cli.menu import AskPassphrase, Console, choose_key
from moat.cli.output import emit_json, say
from moat.cli.walk import Walk
from moat.config import UpstreamConfig, load_user
from moat.dataclass import dataclass
from moat.errors import GrantError, UsageError
from moat.grants import Credential, CredentialInfo, CredentialKind, Grant, Secret
from moat.paths import Home
from moat.vault import Vault, open_vault
from moat.vault.index import describe
from moat.vault.key import NewKey
from moat.vault.origin import LIFE, Origin, parse_life
from moat.vault.providers import entry, is_built_in, vendor_of

if TYPE_CHECKING:
    from moat.vault.validate import Verdict

_STDIN_LIMIT = 64 * 1024  # characters; no credential is longer
# What a header can carry without a doubt; a line end in a credential would be a header of its own.
_SHAPE = re.compile(r"[!-~]+")
_LEAST = 4  # characters; a slip of the hand, not a token


@dataclass(frozen=True, slots=True)
class Wizard:
    """One `moat grant <provider>` under way."""

    console: Console
    vault: Vault
    upstream: UpstreamConfig
    json: bool
    validate: bool
    origin: Origin | None = None  # where the credential is kept; None: the vault is to keep it

    def check(self, request: Coroutine[None, None, Verdict]) -> Verdict:
        """Run a check of the credential. Raises GrantError when it was rejected, or the user gives up.

        When nobody could be asked, a user decides; a script goes on with a warning.
        """
        from moat.vault.validate import Outcome

        verdict = asyncio.run(request)
        if verdict.outcome is Outcome.REJECTED:
            raise GrantError(f"{verdict.reason}; nothing was stored", hint="check it and grant again")
        if verdict.outcome is Outcome.UNKNOWN:
            if not self.console.terminal:
                say(f"warning: not validated: {verdict.reason}")
            else:
                self.console.print(f"It could not be validated: {verdict.reason}.")
                if not self.console.confirm("Save it anyway?", default=False):
                    raise GrantError("nothing was stored", hint="grant again, or use --no-validate")
        return verdict

    def given(self) -> Secret | None:
        """What is kept where the user says, as it is now; None: he does not say. Raises GrantError."""
        if self.origin is None:
            return None
        from moat.vault.resolve import resolve

        self.console.print(f"Asking {self.origin.shown}...")
        return asyncio.run(resolve(self.origin))

    def save(self, credential: Credential, sentence: str) -> None:
        """Store it, or where it is kept. `sentence` is what to say, with {} for the place."""
        info = credential.info
        if self.origin is None:
            self.vault.put(credential)
            place = self.vault.location(info.name)
            self.console.print(sentence.format(place))
        else:
            info = replace(info, metadata={**info.metadata, **self.origin.metadata})
            self.vault.note(info)
            place = self.origin.shown
            self.console.print(f"No secret was stored: every run takes {info.name} from {place}.")
        if self.json:
            store = self.origin.kind if self.origin else self.vault.store(info.name)
            emit_json(describe(info) | {"store": store, "location": place})


def options(parser: argparse.ArgumentParser) -> None:
    """The flags that every provider has."""
    source_options(parser)
    parser.add_argument("--no-validate", action="store_true", help="make no test request")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_credential_options(parser)


def source_options(parser: argparse.ArgumentParser) -> None:
    """Where the credential comes from, when nobody shall be asked."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--token-stdin", action="store_true", help="read the credential from standard input; ask nothing"
    )
    which.add_argument(
        "--from",
        dest="origin",
        metavar="PLACE",
        help="store no secret: op://…, env://VAR, ssm://…",
    )
    which.add_argument("--command", metavar="COMMAND", help="store no secret: this prints it")
    parser.add_argument(
        "--ttl", metavar="TIME", help="with --from or --command: ask again after it (default: 15m)"
    )


def _origin(chosen: argparse.Namespace) -> Origin | None:
    """Raises UsageError."""
    place, words = getattr(chosen, "origin", None), getattr(chosen, "command", None)
    given = getattr(chosen, "ttl", None)
    if place is None and words is None:
        if given is not None:
            raise UsageError("--ttl belongs to --from or --command", hint="leave it out")
        return None
    if getattr(chosen, "method", None) is not None:
        raise UsageError("--method and --from or --command exclude each other", hint="give one of them")
    life = LIFE if given is None else parse_life(given)
    return Origin.command(words, life) if words is not None else Origin.reference(str(place), life)


def walk(chosen: argparse.Namespace, grant: Callable[[Wizard], None]) -> int:
    """Open the vault, and let `grant` ask for a credential and save it; Esc goes back through all of it."""
    console = Walk(json=chosen.json)
    console.through(lambda: grant(_begin(chosen, console)))
    return 0


def _begin(chosen: argparse.Namespace, console: Console) -> Wizard:
    """Everything that can fail before the user is asked for a credential fails here."""
    upstream = load_user(Home.from_environment()).upstream
    origin = _origin(chosen)
    vault = open_asking(console, ask_for_key=not chosen.token_stdin)
    if origin is None:
        vault.prepare()
    return Wizard(console, vault, upstream, chosen.json, not chosen.no_validate, origin)


def open_asking(console: Console, *, ask_for_key: bool = True) -> Vault:
    """The vault, which asks at a terminal for what it needs: a passphrase, how to protect its first files."""
    home = Home.from_environment()
    default_file = home.credentials / "key"

    def new_key() -> NewKey:
        if console.terminal and ask_for_key:
            return choose_key(console, default_file)
        return _key_file(default_file)

    return open_vault(home, passphrase=AskPassphrase.where_possible(console), new_key=new_key)


def credential(
    name: str,
    kind: CredentialKind,
    secret: Secret,
    *,
    hosts: tuple[str, ...] | None = None,
    expires_at: dt.datetime | None = None,
    metadata: Mapping[str, str],
) -> Credential:
    """A credential made now, bound to `hosts`, or to all of its provider."""
    info = CredentialInfo(
        name=name,
        kind=kind,
        hosts=entry(name).hosts if hosts is None else hosts,
        created_at=dt.datetime.now(dt.UTC),
        expires_at=expires_at,
        metadata={key: value for key, value in metadata.items() if value},
    )
    return Credential(info, secret)


def read_stdin() -> Secret:
    """The credential on standard input, without any white space. Raises UsageError."""
    if sys.stdin.isatty():
        raise UsageError("--token-stdin reads a pipe or a file", hint="leave it out to be asked")
    return Secret("".join(sys.stdin.read(_STDIN_LIMIT).split()))


def misshapen(text: str) -> str:
    """Why `text` cannot be a credential of any kind, or ""."""
    if not text:
        return "it is empty"
    return "" if _SHAPE.fullmatch(text) else "it has characters that no credential has"


def unfit(grant: Grant) -> Callable[[str], str]:
    """Why a text cannot be a credential for `grant`, or "".

    One that bears another vendor's mark must not even be shown to this one. A host or a provider that the
    user names may well take another's.
    """

    def problem(text: str) -> str:
        if (wrong := misshapen(text)) or grant.scope or not is_built_in(grant.name):
            return wrong
        if len(text) < _LEAST:
            return "it is too short"
        vendor = vendor_of(text)
        return f"it is one for {vendor} (moat grant {vendor})" if vendor not in {"", grant.name} else ""

    return problem


def may_take_login(wizard: Wizard, chosen: argparse.Namespace, variables: Iterable[str]) -> bool:
    """Whether to look for another tool's login: it was asked for, or a person can be and no key lies ready.

    `variables` of the shell may hold a key.
    """
    if chosen.token_stdin or wizard.origin is not None or chosen.method not in {None, "import"}:
        return False
    return chosen.method is not None or (wizard.console.terminal and not any(map(os.environ.get, variables)))


def insist(problem: str, hint: str) -> None:
    """Raise UsageError when there is a problem and nobody to ask again."""
    if problem:
        raise UsageError(f"{problem}; nothing was stored", hint=hint)


def _key_file(path: Path) -> NewKey:
    """Without a terminal, MOAT_KEYRING_BACKEND=file alone means a key file. It is never made silently."""
    say(f"credentials are sealed with the key file {path} (who can read it can read them)")
    say("hint: set MOAT_PASSPHRASE to use a passphrase instead")
    return NewKey(key_file=path)
