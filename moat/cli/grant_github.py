"""`moat grant github`: a token from the environment, from GitHub's `gh`, or typed in."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from moat.cli.granting import Wizard, credential, insist, options, read_stdin, unfit, walk
from moat.cli.parser import Parser
from moat.errors import GrantError, UsageError
from moat.grants import CredentialKind, Grant, Secret
from moat.vault.providers import entry

_GRANT = Grant("github")
_VARIABLES = ("GITHUB_TOKEN", "GH_TOKEN")


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="moat grant github",
        description="Store the token that git, gh and the GitHub API use in sandboxes.",
        epilog="Looked for in this order: GITHUB_TOKEN, GH_TOKEN, gh (asks first), a prompt.",
    )
    parser.add_argument("--method", choices=("env", "gh", "prompt"), help="take it from there only")
    options(parser)
    chosen = parser.parse_args(argv)
    return walk(chosen, lambda wizard: _grant(wizard, chosen))


def _grant(wizard: Wizard, chosen: argparse.Namespace) -> None:
    hosts = ", ".join(entry("github").hosts)
    wizard.console.print(f"The token goes to {hosts} and nowhere else.")
    wizard.console.print("The proxy puts it in the header authorization (Bearer; for git: Basic).")
    if chosen.token_stdin:
        secret, source = read_stdin(), "stdin"
    elif (kept := wizard.given()) is not None:
        secret, source = kept, ""
    else:
        secret, source = _find(wizard, chosen.method)
    insist(unfit(_GRANT)(secret.reveal()), "check the token")
    login = _validate(wizard, secret) if wizard.validate else ""
    found = credential("github", CredentialKind.TOKEN, secret, metadata={"source": source, "login": login})
    wizard.save(found, "GitHub token saved to {}")


def _find(wizard: Wizard, method: str | None) -> tuple[Secret, str]:
    """(token, where it is from). Raises UsageError or GrantError when there is none."""
    console = wizard.console
    if method in {None, "env"}:
        for name in _VARIABLES:
            if os.environ.get(name):
                console.print(f"Using the token from {name}.")
                return Secret(os.environ[name]), name
    # Without a terminal gh's own login is taken only when it was asked for.
    if method == "gh" or (method is None and console.terminal):
        token = _from_gh(wizard, ask=method is None)
        if token is not None:
            return token, "gh"
    if method == "gh":
        raise GrantError("gh has no login for github.com", hint="run `gh auth login`")
    if method == "env" or not console.terminal:
        raise UsageError(
            "no GitHub token given",
            hint="set GITHUB_TOKEN, pipe one into `moat grant github --token-stdin`, or use --method gh",
        )
    console.print("Enter a GitHub token. You can create one at: https://github.com/settings/tokens")
    return console.hidden("Token: ", unfit(_GRANT)), "prompt"


def _from_gh(wizard: Wizard, *, ask: bool) -> Secret | None:
    from moat.vault.local_login import gh_token

    token = gh_token()
    if token is not None and ask and not wizard.console.confirm("Use the token of gh?", default=True):
        return None
    return token


def _validate(wizard: Wizard, secret: Secret) -> str:
    """Ask GitHub whose token it is; the login, or "" when GitHub does not tell."""
    from moat.vault.validate import Outcome, check_github

    wizard.console.print("Validating token...")
    verdict = wizard.check(check_github(secret, wizard.upstream))
    if verdict.outcome is Outcome.VALID:
        wizard.console.print(f"Authenticated as {verdict.login}." if verdict.login else "Token is valid.")
    return verdict.login
