"""`moat grant docker`: a login to a registry of container images."""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import Sequence

from moat.cli.granting import Wizard, credential, insist, misshapen, options, read_stdin, walk
from moat.cli.parser import Parser
from moat.config import UpstreamConfig, parse_host
from moat.errors import GrantError, UsageError
from moat.grants import CredentialKind, Grant, Secret
from moat.vault.providers.docker import HUB, HUB_REALM, NAME, REALM, SERVICE, USERNAME
from moat.vault.registry.logins import Login, find
from moat.vault.registry.service import IDENTITY, LoginRefusedError, Service, check, discover
from moat.vault.validate import Outcome, Verdict

_HUB_NAMES = frozenset({HUB, "docker.io", "index.docker.io", "hub.docker.com"})
_USERNAME = re.compile(r"[^\x00-\x20\x7f:]{1,255}")


def main(argv: Sequence[str]) -> int:
    chosen = _parser().parse_args(argv)
    host = _host(chosen.host)
    return walk(chosen, lambda wizard: _grant(wizard, host, chosen))


def _grant(wizard: Wizard, host: str, chosen: argparse.Namespace) -> None:
    grant = Grant(NAME, None if host == HUB else host)
    wizard.console.print(f"Asking {host} how it wants to be logged in to...")
    service = asyncio.run(discover(host, wizard.upstream))
    _announce(wizard, host, service, chosen.token_host)
    login = _login(wizard, host, chosen)
    if login.username == IDENTITY and not service.realm:
        raise GrantError(
            f"{host} takes no identity token, as the login in {login.where} is one",
            hint="make an access token at the registry, and give it with --username",
        )
    if wizard.validate:
        wizard.console.print("Validating the login...")
        verdict = wizard.check(_check(host, service, login, wizard.upstream))
        if verdict.outcome is Outcome.VALID:
            wizard.console.print(f"Authenticated as {_who(login)}.")
    found = credential(
        str(grant),
        CredentialKind.TOKEN,
        login.password,
        hosts=tuple(dict.fromkeys(filter(None, (host, service.host)))),
        metadata={
            USERNAME: login.username,
            REALM: service.realm,
            SERVICE: service.service,
            "source": login.where,
        },
    )
    wizard.save(found, f"Credential {grant} saved to {{}}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"moat grant {NAME}",
        description="Store a login to a registry of container images, for skopeo, crane, oras and others. "
        "Neither the password nor a token of the registry enters the sandbox.",
        epilog="Without --username, the login of docker or podman on this machine is looked for "
        "(credential helpers too), then it is asked for.",
    )
    parser.add_argument("--host", help="another registry than Docker Hub, e.g. ghcr.io")
    parser.add_argument("--username", help="name of the account; the password may be an access token")
    parser.add_argument(
        "--token-host", metavar="HOST", help="the host that may sell the registry's tokens, if it is another"
    )
    parser.add_argument("--method", choices=("import", "prompt"), help="take it from there only")
    options(parser)
    return parser


def _host(given: str | None) -> str:
    host = (given or HUB).lower()
    if host in _HUB_NAMES:
        return HUB
    if parse_host(host) != host or "." not in host.strip("."):
        raise UsageError(f"--host {given}: not a whole host name", hint="e.g. --host ghcr.io")
    return host


def _announce(wizard: Wizard, host: str, service: Service, allowed: str | None) -> None:
    """Where the password will go. A registry cannot send it somewhere without the user's consent.

    Raises UsageError, GrantError.
    """
    where = f"{host} and nowhere else" if service.host in {"", host} else f"{service.host} and nowhere else"
    wizard.console.print(f"For {host}. The password goes to {where}.")
    if service.host in {"", host, allowed} or (host, service.host) == (HUB, HUB_REALM):
        return
    if allowed is None and wizard.console.terminal:
        if wizard.console.confirm(f"May {service.host} have the password of {host}?", default=False):
            return
        raise GrantError("nothing was stored", hint="ask who runs the registry")
    raise UsageError(
        f"{host} wants its password to be sent to {service.host}",
        hint=f"if that is right, add --token-host {service.host}",
    )


def _login(wizard: Wizard, host: str, chosen: argparse.Namespace) -> Login:
    """Raises UsageError or GrantError when there is none and nobody to ask."""
    console, name = wizard.console, chosen.username
    given = Secret("") if chosen.method == "import" else None
    if chosen.token_stdin or wizard.origin is not None:
        if not name:
            raise UsageError("whose password is it?", hint="add --username")
        secret = read_stdin() if chosen.token_stdin else wizard.given()
        assert secret is not None
        return _sound(Login("stdin" if chosen.token_stdin else "", name, secret))
    if given is not None or (not name and chosen.method is None and console.terminal):
        found = find(host)
        if found and (
            given or console.confirm(f"Use the login of {_who(found)} in {found.where}?", default=True)
        ):
            return _sound(found)
        if given is not None:
            raise GrantError(
                f"no tool on this machine has a login for {host}", hint="leave out --method to be asked"
            )
    if not console.terminal:
        raise UsageError(
            f"no login for {host} given",
            hint=f"pipe the password into `moat grant {NAME} --username NAME --token-stdin`, "
            "or use --method import",
        )
    name = name or console.line("Username: ")
    return _sound(Login("prompt", name, console.hidden("Password or access token: ", misshapen)))


def _who(login: Login) -> str:
    return "the owner of an identity token" if login.username == IDENTITY else login.username


def _sound(login: Login) -> Login:
    if not _USERNAME.fullmatch(login.username):
        raise UsageError("the user name is empty or has characters that none has", hint="check --username")
    insist(misshapen(login.password.reveal()), "check the password")
    return login


async def _check(host: str, service: Service, login: Login, upstream: UpstreamConfig) -> Verdict:
    try:
        await check(host, service, login.username, login.password, upstream)
    except LoginRefusedError as error:
        return Verdict(Outcome.REJECTED, str(error))
    except GrantError as error:
        return Verdict(Outcome.UNKNOWN, str(error))
    return Verdict(Outcome.VALID, login=login.username)
