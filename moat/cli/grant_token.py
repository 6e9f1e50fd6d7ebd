"""`moat grant NAME` for every provider whose credential is one token (`moat.vault.providers.declared`)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from moat.cli.granting import Wizard, credential, insist, options, read_stdin, unfit, walk
from moat.cli.parser import Parser
from moat.config import parse_host
from moat.errors import GrantError, UsageError
from moat.grants import CredentialKind, Grant, Secret
from moat.vault.found import Found, about, in_environment, in_files
from moat.vault.providers.declared import Declared

_METHODS = ("env", "import", "prompt")


def main(provider: Declared, argv: Sequence[str]) -> int:
    chosen = _parser(provider).parse_args(argv)
    host: str = getattr(chosen, "host", None) or ""
    grant = Grant.parse(f"{provider.name}:{host.lower()}" if host else provider.name)
    _check_host(grant)
    return walk(chosen, lambda wizard: _grant(wizard, provider, grant, chosen))


def _grant(wizard: Wizard, provider: Declared, grant: Grant, chosen: argparse.Namespace) -> None:
    if provider.name in _LOGINS and _LOGINS[provider.name](wizard, chosen):
        return
    _announce(wizard, provider, grant)
    given = _given(wizard, provider, grant, chosen)
    insist(unfit(grant)(given.secret.reveal()), "check the token")
    facts = about(grant)
    login = _validate(wizard, provider, grant, given.secret, facts) if wizard.validate else ""
    found = credential(
        str(grant),
        CredentialKind.TOKEN,
        given.secret,
        hosts=provider.entry.bound(grant.scope),
        metadata={**facts, "source": given.where, "login": login},
    )
    wizard.save(found, f"Credential {grant} saved to {{}}")


def _gemini(wizard: Wizard, chosen: argparse.Namespace) -> bool:
    from moat.cli import grant_gemini

    return grant_gemini.offer(wizard, chosen)


def _codex(wizard: Wizard, chosen: argparse.Namespace) -> bool:
    from moat.cli import grant_codex

    return grant_codex.offer(wizard, chosen)


# Providers that have logins of another tool besides tokens.
_LOGINS = {"gemini": _gemini, "openai": _codex}


def _parser(provider: Declared) -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"moat grant {provider.name}",
        description=f"Store a credential for {provider.summary}.",
        epilog="Looked for in this order: "
        + ", ".join([*provider.sources, "other tools' logins (asks first)", "a prompt"])
        + ".",
    )
    parser.add_argument("--method", choices=_METHODS, help="take it from there only")
    if provider.scoped:
        parser.add_argument("--host", help=f"another host than {provider.hosts[0].removeprefix('*.')}")
    options(parser)
    return parser


def _given(wizard: Wizard, provider: Declared, grant: Grant, chosen: argparse.Namespace) -> Found:
    if chosen.token_stdin:
        return Found("stdin", read_stdin())
    if (secret := wizard.given()) is not None:
        return Found("", secret)
    return _find(wizard, provider, grant, chosen.method)


def _check_host(grant: Grant) -> None:
    """A whole host name: of `com`, a provider that takes in subdomains would make half of the internet."""
    if grant.scope and (parse_host(grant.scope) != grant.scope or "." not in grant.scope.strip(".")):
        raise UsageError(f"--host {grant.scope}: not a whole host name", hint="e.g. --host git.example.com")


def _announce(wizard: Wizard, provider: Declared, grant: Grant) -> None:
    """Where the credential will go, and how, before it is asked for."""
    hosts = ", ".join(provider.entry.bound(grant.scope))
    wizard.console.print(f"For {provider.summary}. The credential goes to {hosts} and nowhere else.")
    wizard.console.print(f"The proxy puts it {provider.injection.shown}.")


def _find(wizard: Wizard, provider: Declared, grant: Grant, method: str | None) -> Found:
    """Raises UsageError or GrantError when there is none and nobody to ask."""
    console = wizard.console
    # A variable is for the vendor's own host; another host's credential has to be meant.
    asked = method == "env" or (method is None and not grant.scope)
    if asked and (found := in_environment(provider)):
        console.print(f"Using the token from {found.where}.")
        return found
    # Without a terminal another tool's login is taken only when it was asked for.
    if method == "import" or (method is None and console.terminal):
        found = in_files(grant)
        if found and (method or console.confirm(f"Use the token in {found.where}?", default=True)):
            return found
    if method == "import":
        raise GrantError(
            f"no tool on this machine has a login for {grant}", hint="leave out --method to be asked"
        )
    if method == "env" or not console.terminal:
        variables = f"set {provider.sources[0]}, or " if provider.sources else ""
        raise UsageError(
            f"no credential for {grant} given",
            hint=f"{variables}pipe it into `moat grant {provider.name} --token-stdin`",
        )
    if provider.where:
        console.print(f"You can make one at {provider.where}")
    return Found("prompt", console.hidden("Token: ", unfit(grant)))


def _validate(
    wizard: Wizard, provider: Declared, grant: Grant, secret: Secret, facts: Mapping[str, str]
) -> str:
    """Ask the vendor whose token it is; the login, or "" when it does not tell."""
    from moat.vault.validate import Outcome, check_declared

    check = provider.check_of(facts)
    if check is None:
        wizard.console.print("Not validated: this vendor has no request for it.")
        return ""
    wizard.console.print("Validating token...")
    verdict = wizard.check(check_declared(provider, check, grant, secret, wizard.upstream))
    if verdict.outcome is Outcome.VALID:
        wizard.console.print(f"Authenticated as {verdict.login}." if verdict.login else "Token is valid.")
    return verdict.login
