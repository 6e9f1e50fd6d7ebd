"""`moat grant ssh --host HOST`: the key with which runs may log in to a host. It stays where it is."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
from collections.abc import Sequence
from pathlib import Path

from moat.cli.common import add_credential_options
from moat.cli.menu import Console
from moat.cli.output import emit_json
from moat.cli.parser import Parser
from moat.dataclass import dataclass
from moat.errors import GrantError, UsageError
from moat.paths import Home
from moat.runtime.ssh import hostkeys, keyfile, signing
from moat.runtime.ssh.client import ClientConfig, check_host, client_config
from moat.runtime.ssh.part import how_to_know, unknown_host
from moat.sshwire import fingerprint, key_type
from moat.vault import open_vault
from moat.vault.index import describe
from moat.vault.ssh import SshGrant


@dataclass(frozen=True, slots=True)
class Key:
    """A key that may be chosen."""

    key: bytes  # public
    comment: str = ""
    path: str = ""  # of the private key

    def __str__(self) -> str:
        kind = key_type(self.key).removeprefix("ssh-")
        comment = "".join(c for c in self.comment if c.isprintable())  # it came from somewhere else
        return " ".join(filter(None, (fingerprint(self.key), kind, comment)))


def main(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    host = check_host(options.host)
    console = Console(json=options.json)
    config = client_config(host)
    _check_host_key(_grant(host, config, Key(b"")))
    key = _choose(options.key, config, console)
    grant = _grant(host, config, key)
    asyncio.run(signing.check(grant))
    vault = open_vault(Home.from_environment())
    info = grant.info(dt.datetime.now(dt.UTC))
    vault.note(info)
    console.print(f"SSH to {host} granted with {key}")
    console.print(f"Use it with: moat run --grant {grant.name} -- ssh -T {config.user or 'git'}@{host}")
    if options.json:
        emit_json(describe(info) | {"store": None, "location": vault.location(grant.name)})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="moat grant ssh",
        description="Let runs log in to one host by SSH, with one key. Nothing secret is stored: your own "
        "SSH agent signs, or the key file if it is not encrypted.",
        epilog="Without --key: chosen from the keys in your SSH agent, else the one that ssh would use.",
    )
    parser.add_argument("--host", required=True, help="host name, or a Host of ~/.ssh/config")
    parser.add_argument(
        "--key", metavar="FILE|FINGERPRINT", help="a key file, or SHA256:… as `ssh-add -l` shows"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_credential_options(parser)
    return parser


def _grant(host: str, config: ClientConfig, key: Key) -> SshGrant:
    return SshGrant(
        host=host,
        hostname=config.hostname,
        port=config.port,
        user=config.user,
        known_as=config.known_as,
        known_hosts=config.known_hosts,
        key=key.key,
        comment=key.comment,
        key_path=key.path,
        agent=config.agent,
    )


def _check_host_key(grant: SshGrant) -> None:
    """Without it a session with the host could not be told from one with somebody else."""
    if not hostkeys.look_up(grant.known_as, grant.known_hosts):
        raise GrantError(unknown_host(grant), hint=how_to_know(grant))


def _choose(wanted: str | None, config: ClientConfig, console: Console) -> Key:
    held, trouble = _agent_keys(config)
    files = []
    for path in config.identities:
        with contextlib.suppress(GrantError):  # ssh passes over what is no key, too
            files.append(_file_key(path))
    if wanted is not None:
        return _named(wanted, held, files, trouble)
    held = [_with_path(key, files) for key in held]
    if held and console.terminal:
        return held[0] if len(held) == 1 else _menu(held, console)
    if files:
        return files[0]
    if len(held) == 1:
        return held[0]
    if held:
        listed = "\n".join(f"  --key {key}" for key in held)
        raise UsageError("your SSH agent holds several keys, and there is no terminal to ask at", hint=listed)
    raise GrantError(
        f"no SSH key was found: {trouble}", hint="name one with --key, or add one with `ssh-add`"
    )


def _agent_keys(config: ClientConfig) -> tuple[list[Key], str]:
    """The keys in the agent that ssh would ask for this host, or why there are none."""
    probe = _grant("agent", config, Key(b""))
    try:
        found = asyncio.run(signing.agent_of(probe).identities())
    except signing.SigningError as error:
        return [], str(error)
    # A certificate is listed beside its key, and logs in as somebody that the grant does not name.
    keys = [Key(i.key, i.comment.decode("utf-8", "replace")) for i in found if b"-cert-v0" not in i.key[:64]]
    return keys, "your SSH agent holds none"


def _file_key(path: Path) -> Key:
    try:
        found = keyfile.public_key(path)
    except keyfile.KeyFileError as error:
        raise GrantError(str(error), hint="name another key with --key") from None
    private = path.with_suffix("") if path.suffix == ".pub" else path
    return Key(found.key, found.comment, str(private.absolute()) if private.exists() else "")


def _named(wanted: str, held: Sequence[Key], files: Sequence[Key], trouble: str) -> Key:
    """The key of `--key`. Raises UsageError when there is none."""
    if not wanted.startswith("SHA256:"):
        path = Path(wanted).expanduser()
        if not path.is_file():
            raise UsageError(f"--key {wanted}: no such file", hint="`ssh-add -l` shows fingerprints")
        return _file_key(path)
    for key in (*files, *held):
        if fingerprint(key.key) == wanted:
            return key
    there = ", ".join(map(str, held)) or trouble
    raise UsageError(f"--key {wanted}: there is no such key", hint=f"in your SSH agent: {there}")


def _with_path(key: Key, files: Sequence[Key]) -> Key:
    """The same key with its file, if ssh has one for it."""
    return next((Key(key.key, key.comment, file.path) for file in files if file.key == key.key), key)


def _menu(keys: Sequence[Key], console: Console) -> Key:
    console.print("Which key may runs use?")
    console.print()
    for number, key in enumerate(keys, 1):
        console.print(f"  {number}. {key}")
    console.print()
    numbers = [str(number) for number in range(1, len(keys) + 1)]
    return keys[int(console.choose(f"Enter choice [1-{len(keys)}]: ", numbers)) - 1]
