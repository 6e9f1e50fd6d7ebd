"""What the wizards of all providers share: open the vault first, check the credential, save, say where."""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import re
import sys
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moat.cli.common import add_credential_options
from moat.cli.menu import AskPassphrase, Console, choose_key
from moat.cli.output import emit_json, say
from moat.config import UpstreamConfig, load_user
from moat.errors import GrantError, UsageError
from moat.grants import Credential, CredentialInfo, CredentialKind, Secret
from moat.paths import Home
from moat.vault import Vault, open_vault
from moat.vault.index import describe
from moat.vault.key import NewKey
from moat.vault.providers import entry

if TYPE_CHECKING:
    from moat.vault.validate import Verdict

_STDIN_LIMIT = 64 * 1024  # characters; no credential is longer
# What a header can carry without a doubt; a line end in a credential would be a header of its own.
_SHAPE = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Wizard:
    """One `moat grant <provider>` under way."""

    console: Console
    vault: Vault
    upstream: UpstreamConfig
    json: bool
    validate: bool

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

    def save(self, credential: Credential, sentence: str) -> None:
        """Store it. `sentence` is what to say, with {} for the place."""
        self.vault.put(credential)
        name = credential.info.name
        place = self.vault.location(name)
        self.console.print(sentence.format(place))
        if self.json:
            emit_json(describe(credential.info) | {"store": self.vault.store(name), "location": place})


def options(parser: argparse.ArgumentParser) -> None:
    """The flags that every provider has."""
    parser.add_argument(
        "--token-stdin", action="store_true", help="read the credential from standard input; ask nothing"
    )
    parser.add_argument("--no-validate", action="store_true", help="make no test request")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_credential_options(parser)


def begin(chosen: argparse.Namespace) -> Wizard:
    """Everything that can fail before the user is asked for a credential fails here."""
    home = Home.from_environment()
    console = Console(json=chosen.json)
    upstream = load_user(home).upstream
    default_file = home.credentials / "key"

    def new_key() -> NewKey:
        if console.terminal and not chosen.token_stdin:
            return choose_key(console, default_file)
        return _key_file(default_file)

    vault = open_vault(home, passphrase=AskPassphrase.where_possible(), new_key=new_key)
    vault.prepare()
    return Wizard(console, vault, upstream, chosen.json, not chosen.no_validate)


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


def insist(problem: str, hint: str) -> None:
    """Raise UsageError when there is a problem and nobody to ask again."""
    if problem:
        raise UsageError(f"{problem}; nothing was stored", hint=hint)


def _key_file(path: Path) -> NewKey:
    """Without a terminal, MOAT_KEYRING_BACKEND=file alone means a key file. It is never made silently."""
    say(f"credentials are sealed with the key file {path} (who can read it can read them)")
    say("hint: set MOAT_PASSPHRASE to use a passphrase instead")
    return NewKey(key_file=path)
