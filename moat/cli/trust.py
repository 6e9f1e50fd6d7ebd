"""`moat trust install|remove|status`: whether this user's programs trust the CA of endpoints."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence

from moat import surroundings
from moat.cli.output import emit, emit_json, say, table
from moat.cli.parser import Parser
from moat.errors import MoatError
from moat.paths import Home
from moat.runtime import known
from moat.runtime.endpoints import ca
from moat.runtime.endpoints.stores import Certificate, Step, Store, stores


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="moat trust",
        description="Let browsers and other programs of this machine trust the certificates of endpoints "
        "(https://<endpoint>.<run>.localhost). The CA is this installation's own, for localhost only.",
    )
    parser.add_argument("action", choices=("install", "remove", "status"))
    parser.add_argument(
        "--system", action="store_true", help="also the system's store, of all users (root, or sudo)"
    )
    parser.add_argument("--dry-run", action="store_true", help="show the commands, run none")
    parser.add_argument("--json", action="store_true", help="with status: as JSON")
    options = parser.parse_args(argv)
    surroundings.leave(*known.workspaces(Home.from_environment()))
    certificate = _certificate(Home.from_environment())
    if options.action == "status":
        return _status(certificate, as_json=options.json)
    if options.action == "install":
        return _install(certificate, system=options.system, dry=options.dry_run)
    return _remove(certificate, dry=options.dry_run)


def _certificate(home: Home) -> Certificate:
    pem = ca.ensure(home)
    return Certificate(ca.certificate_path(home), ca.name_of(pem), pem)


def _status(certificate: Certificate, *, as_json: bool) -> int:
    rows = [(store.what, store.holds(certificate)) for store in stores()]
    if as_json:
        found = [{"store": what, "trusted": trusted} for what, trusted in rows]
        emit_json({"certificate": str(certificate.path), "name": certificate.name, "stores": found})
        return 0
    emit(f"{certificate.name} ({certificate.path})")
    if rows:
        emit(table(("TRUSTED", "STORE"), [("yes" if trusted else "no", what) for what, trusted in rows]))
    else:
        emit("no certificate store was found")
    return 0


def _install(certificate: Certificate, *, system: bool, dry: bool) -> int:
    wanted = [store for store in stores() if not store.holds(certificate) and (system or not store.system)]
    for store in wanted:
        say(f"{certificate.name}: adding to {store.what}")
        _carry_out(store.install(certificate), dry=dry)
    if not wanted:
        say("nothing to do: the stores that were found trust it already")
    if not system and any(store.system and not store.holds(certificate) for store in stores()):
        say("curl, git and others use the system's store: `moat trust install --system`")
    if not dry:
        say("restart a browser that is open; `moat trust remove` takes all of it back")
    return _checked(wanted, certificate, lambda held: held, dry=dry)


def _remove(certificate: Certificate, *, dry: bool) -> int:
    held = [store for store in stores() if store.holds(certificate)]
    for store in held:
        say(f"{certificate.name}: removing from {store.what}")
        _carry_out(store.remove(certificate), dry=dry)
    if not held:
        say("nothing to do: no store holds it")
    return _checked(held, certificate, lambda still: not still, dry=dry)


def _carry_out(steps: Sequence[Step], *, dry: bool) -> None:
    """Show each command before it is run. Raises MoatError with what a failing one said."""
    for step in steps:
        argv = list(step.argv)
        if step.root and os.geteuid() != 0:
            argv = ["sudo", *argv]
        say(f"  {shlex.join(argv)}")
        if dry:
            continue
        if argv[0] == "sudo" and shutil.which("sudo") is None:
            raise MoatError(
                "only root can do that, and there is no sudo", hint=f"as root: {shlex.join(step.argv)}"
            )
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, cwd="/")
        if done.returncode != 0:
            said = done.stdout.decode(errors="replace").strip().splitlines()[-1:]
            raise MoatError(": ".join([f"{argv[0]} failed with status {done.returncode}", *said]))


def _checked(
    changed: Sequence[Store], certificate: Certificate, right: Callable[[bool], bool], *, dry: bool
) -> int:
    """A store that took the command and did not do it is a failure."""
    wrong = [] if dry else [store.what for store in changed if not right(store.holds(certificate))]
    for what in wrong:
        say(f"error: it did not change: {what}")
    return 3 if wrong else 0
