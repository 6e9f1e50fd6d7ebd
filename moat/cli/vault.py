"""`moat vault move|export|import`: credentials from one store to the other, and to another machine."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from moat.cli.common import add_credential_options
from moat.cli.granting import open_asking
from moat.cli.menu import Console
from moat.cli.output import Progress, emit, emit_json, safe, say
from moat.cli.parser import Parser
from moat.errors import GrantError, MoatError, UsageError, VaultError
from moat.grants import CredentialInfo, Secret
from moat.paths import create_file
from moat.vault import Vault
from moat.vault.index import StoreName
from moat.vault.origin import Origin
from moat.vault.providers import check_name

_STORES: dict[str, StoreName] = {"keyring": "keyring", "files": "file"}


def main(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    vault = open_asking(Console(json=True))
    if options.action == "move":
        return _move(vault, options)
    if options.action == "export":
        return _export(vault, options)
    return _import(vault, options)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="moat vault", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="move|export|import")
    move = actions.add_parser("move", help="keep all credentials, and new ones, in the other store")
    move.add_argument("--to", choices=tuple(_STORES), required=True, help="the OS keyring, or sealed files")
    export = actions.add_parser("export", help="write all credentials into a file that age can open")
    export.add_argument("file", metavar="FILE", help="a new file; - for standard output")
    export.add_argument(
        "-r", "--recipient", action="append", metavar="KEY", help="for this key, age1… or ssh-… (repeatable)"
    )
    taking = actions.add_parser("import", help="store the credentials of such a file")
    taking.add_argument("file", metavar="FILE", help="what `moat vault export` wrote; - for standard input")
    taking.add_argument("-i", "--identity", metavar="KEYFILE", help="an age identity, or an SSH private key")
    taking.add_argument("--replace", action="store_true", help="also those that are here already")
    taking.add_argument(
        "--sources",
        action="store_true",
        help="also those that this machine would give: from a command, a variable, a password manager",
    )
    for action in (export, taking):
        action.add_argument(
            "--passphrase-fd", type=int, metavar="N", help="read the passphrase from this descriptor"
        )
    for action in (move, export, taking):
        action.add_argument("--json", action="store_true", help="print the result as JSON")
        add_credential_options(action)
    return parser


def _move(vault: Vault, options: argparse.Namespace) -> int:
    """One after the other: what cannot be moved stays where it is, and the rest can be moved later."""
    to = _STORES[options.to]
    moved = [info.name for info in vault.list() if vault.move(info.name, to)]
    if options.json:
        emit_json({"moved": moved, "store": to})
    elif not moved:
        say(f"nothing to move: no credential is kept anywhere but in {options.to}")
    for name in moved if not options.json else ():
        emit(f"{name} moved to {vault.location(name)}")
    return 0


def _export(vault: Vault, options: argparse.Namespace) -> int:
    from moat.vault.export import gather, seal

    if options.recipient and options.passphrase_fd is not None:
        raise UsageError("--recipient and --passphrase-fd exclude each other", hint="give one of them")
    if options.file == "-" and sys.stdout.isatty():
        raise UsageError("the file is not for a terminal", hint="moat vault export FILE")
    if options.file != "-" and os.path.lexists(options.file):
        raise _exists(options.file)
    found = gather(vault)
    if not found:
        raise GrantError("nothing is granted", hint="`moat grant` stores a credential")
    lock = tuple(options.recipient) if options.recipient else _new_passphrase(options.passphrase_fd)
    with _saying("Sealing the file..."):  # a passphrase takes seconds, on purpose
        data = seal(found, lock)
    if options.file == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return 0
    try:
        create_file(Path(options.file), data)
    except FileExistsError:
        raise _exists(options.file) from None
    names = [one.info.name for one in found]
    if options.json:
        emit_json({"exported": names, "file": options.file})
    else:
        emit(f"{len(names)} credentials in {options.file}: {', '.join(names)}")
        say("hint: on the other machine: `moat vault import FILE`; then remove the file")
    return 0


def _exists(file: str) -> UsageError:
    return UsageError(f"{file} exists already", hint="name a new file")


def _import(vault: Vault, options: argparse.Namespace) -> int:
    from moat.vault.export import LIMIT, keep, unseal

    if options.identity and options.passphrase_fd is not None:
        raise UsageError("--identity and --passphrase-fd exclude each other", hint="give one of them")
    data = _read(options.file, LIMIT)
    key = _key(options)
    with _saying("Opening the file..."):
        found = unseal(data, key, identity=bool(options.identity))
    here = {info.name for info in vault.list()}
    done: list[str] = []
    left: dict[str, str] = {}

    for one in found:
        name = safe(one.info.name)
        if reason := _objection(one.info, here, options):
            left[name] = safe(reason)
        else:
            keep(vault, one)
            done.append(name)
    if options.json:
        emit_json({"imported": done, "left": left})
        return 0
    for name in done:
        emit(f"{name} imported")
    for name, why in left.items():
        say(f"{name} left out: {why}")
    return 0


def _objection(info: CredentialInfo, here: Collection[str], options: argparse.Namespace) -> str:
    """Why a credential is not to be stored, or ""."""
    try:
        check_name(info.name)
        origin = Origin.of(info)
    except MoatError as error:
        return str(error)
    if info.name in here and not options.replace:
        return "it is granted here already (--replace)"
    if origin is not None and not options.sources:
        what = "run a command on this machine" if origin.kind == "command" else "be taken from this machine"
        return f"it would {what}, for {', '.join(info.hosts)} (--sources): {origin.text}"
    return ""


def _read(name: str, limit: int) -> bytes:
    if name == "-":
        data = sys.stdin.buffer.read(limit + 1)
    else:
        with open(name, "rb") as file:
            data = file.read(limit + 1)
    if len(data) > limit:
        raise VaultError(
            f"{name} has more than {limit} bytes", hint="`moat vault export` writes no such file"
        )
    return data


@contextlib.contextmanager
def _saying(text: str) -> Iterator[None]:
    progress = Progress()
    progress.show(text)
    try:
        yield
    finally:
        progress.clear()


# --- keys and passphrases --------------------------------------------------------------------------


def _new_passphrase(fd: int | None) -> Secret:
    if fd is not None:
        return _from_descriptor(fd)
    console = _terminal("--passphrase-fd N, or --recipient KEY")
    console.print("Choose a passphrase for the file. Who has both has your credentials.")
    first = console.passphrase("New passphrase: ")
    if console.passphrase("The same again: ") != first:
        raise UsageError("the passphrases differ; nothing was written", hint="run the command again")
    return Secret(first)


def _key(options: argparse.Namespace) -> Secret:
    if options.identity:
        with open(options.identity, encoding="utf-8", errors="replace") as file:
            return Secret(file.read(64 * 1024))
    if options.passphrase_fd is not None:
        return _from_descriptor(options.passphrase_fd)
    console = _terminal("--passphrase-fd N, or --identity KEYFILE")
    return Secret(console.passphrase("Passphrase of the file: "))


def _terminal(instead: str) -> Console:
    console = Console(json=True)
    if not console.terminal:
        raise UsageError("there is no terminal to ask for the passphrase at", hint=instead)
    return console


def _from_descriptor(number: int) -> Secret:
    try:
        with os.fdopen(number, "rb") as file:
            text = file.read(64 * 1024).decode()
    except (OSError, ValueError):
        raise UsageError(
            f"--passphrase-fd {number} cannot be read", hint="pass an open descriptor: `… 3<file`"
        ) from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise UsageError("the passphrase is empty", hint="nothing was read or written")
    return Secret(text)
