"""`moat grant anthropic`: a Claude subscription, an API key, or the login of the local Claude Code."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import shutil
from collections.abc import Sequence

from moat.cli.granting import Wizard, credential, insist, misshapen, options, read_stdin, walk
from moat.cli.parser import Parser
from moat.errors import UsageError
from moat.grants import Credential, CredentialKind, Secret
from moat.vault.index import timestamp
from moat.vault.providers.anthropic import API_KEY_PREFIX, OAUTH_PREFIX

_MENU = """
Choose authentication method:

  1. Claude subscription (recommended)
     Uses 'claude setup-token' to get a long-lived OAuth token.
     Requires a Claude Pro/Max subscription.

  2. Anthropic API key
     Use an API key from console.anthropic.com
     Billed per token to your API account.

  3. Import existing Claude Code credentials
     Use OAuth tokens from your local Claude Code installation.
"""
_METHODS = ("subscription", "api-key", "import")
_SETUP_TOKEN_LIFE = dt.timedelta(days=365)  # what `claude setup-token` asks for
_SAVED = "Anthropic credential saved to {}"
_SAVED_KEY = "Anthropic API key saved to {}"


def main(argv: Sequence[str]) -> int:
    chosen = _parser().parse_args(argv)
    if chosen.token_stdin and chosen.method == "import":
        raise UsageError("--token-stdin and --method import exclude each other", hint="choose one")
    return walk(chosen, lambda wizard: _grant(wizard, chosen))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="moat grant anthropic",
        description="Store the credential that Claude Code uses in sandboxes.",
        epilog="Without a terminal: ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN is taken from the "
        "environment, or --token-stdin reads either.",
    )
    parser.add_argument("--method", choices=_METHODS, help="skip the menu")
    parser.add_argument(
        "--api-key", dest="method", action="store_const", const="api-key", help="the same as --method api-key"
    )
    options(parser)
    return parser


def _grant(wizard: Wizard, chosen: argparse.Namespace) -> None:
    if chosen.token_stdin:
        _take(wizard, chosen.method, read_stdin(), source="stdin")
    elif (kept := wizard.given()) is not None:
        _take(wizard, None, kept, source="")
    else:
        method = chosen.method or _method(wizard)
        {"subscription": _subscription, "api-key": _api_key, "import": _import}[method](wizard)


def _method(wizard: Wizard) -> str:
    if wizard.console.terminal:
        wizard.console.print(_MENU)
        answer = wizard.console.choose("Enter choice [1, 2, or 3]: ", ("1", "2", "3"))
        return _METHODS[int(answer) - 1]
    if os.environ.get("ANTHROPIC_API_KEY"):
        return "api-key"
    if os.environ.get("CLAUDE_CODE_OAUTH_TOKEN"):
        return "subscription"
    raise UsageError(
        "no terminal to ask at, and no credential given",
        hint="set ANTHROPIC_API_KEY, or pipe a key or token into `moat grant anthropic --token-stdin`\n"
        "or use the local login: moat grant anthropic --method import",
    )


def _take(wizard: Wizard, method: str | None, secret: Secret, *, source: str) -> None:
    """Store what nobody had to be asked for."""
    if method is None:
        method = "subscription" if secret.reveal().startswith(OAUTH_PREFIX) else "api-key"
    if method == "subscription":
        insist(_wrong_token(secret.reveal()), "give what `claude setup-token` printed")
        _store_token(wizard, secret, source=source)
    else:
        insist(_wrong_key(secret.reveal()), "give an API key (sk-ant-…) or a setup token (sk-ant-oat…)")
        _store_key(wizard, secret, source=source)


def _subscription(wizard: Wizard) -> None:
    given = os.environ.get("CLAUDE_CODE_OAUTH_TOKEN", "")
    if not wizard.console.terminal:
        if not given:
            raise UsageError(
                "no terminal to run `claude setup-token` at",
                hint="run it elsewhere and pipe the token into `moat grant anthropic --token-stdin`",
            )
        insist(_wrong_token(given), "check CLAUDE_CODE_OAUTH_TOKEN")
        _store_token(wizard, Secret(given), source="CLAUDE_CODE_OAUTH_TOKEN")
        return
    secret = _run_setup_token(wizard)
    if secret is None:
        secret = wizard.console.hidden("Token: ", _wrong_token)
        _store_token(wizard, secret, source="paste")
    else:
        now = dt.datetime.now(dt.UTC)
        found = credential(
            "anthropic",
            CredentialKind.OAUTH,
            secret,
            expires_at=now + _SETUP_TOKEN_LIFE,
            metadata={"source": "setup-token"},
        )
        _save(wizard, found, _SAVED)
    wizard.console.print()
    wizard.console.print("You can now run 'moat claude' to start Claude Code.")


def _run_setup_token(wizard: Wizard) -> Secret | None:
    """The token of `claude setup-token`; None, and the user told to paste one, when that cannot be had."""
    from moat.vault.setup_token import setup_environment, setup_token

    console = wizard.console
    console.print()
    program = shutil.which("claude")
    if program is None:
        console.print("Claude Code ('claude') is not installed on this machine.")
        console.print("Run 'claude setup-token' where it is, and paste the token that it prints.")
        return None
    console.print("Running 'claude setup-token' to obtain authentication token...")
    console.print("This may open a browser for authentication.")
    console.print()
    got = setup_token(
        [program, "setup-token"],
        environment=setup_environment(os.environ, wizard.upstream),
        stdin=0,
        stdout=console.stream.fileno(),
    )
    if got.interrupted:
        raise KeyboardInterrupt
    if got.token is None:
        console.print(f"'claude setup-token' ended without a token (exit status {got.status}).")
        console.print("If you have one, paste it; Ctrl-C gives up.")
    return got.token


def _store_token(wizard: Wizard, secret: Secret, *, source: str) -> None:
    if wizard.validate:
        _validate(wizard, CredentialKind.OAUTH, secret, "token")
    found = credential("anthropic", CredentialKind.OAUTH, secret, metadata={"source": source})
    _save(wizard, found, _SAVED)


def _api_key(wizard: Wizard) -> None:
    console = wizard.console
    given = os.environ.get("ANTHROPIC_API_KEY", "")
    if given:
        insist(_wrong_key(given), "check ANTHROPIC_API_KEY")
        if console.terminal:
            console.print()
            console.print("Using the API key from ANTHROPIC_API_KEY.")
        _store_key(wizard, Secret(given), source="ANTHROPIC_API_KEY")
        return
    if not console.terminal:
        raise UsageError(
            "no terminal to ask for the API key at",
            hint="set ANTHROPIC_API_KEY, or pipe it into `moat grant anthropic --token-stdin`",
        )
    console.print()
    console.print("Enter your Anthropic API key.")
    console.print("You can find or create one at: https://console.anthropic.com/settings/keys")
    console.print()
    _store_key(wizard, console.hidden("API Key: ", _wrong_key), source="prompt")


def _store_key(wizard: Wizard, secret: Secret, *, source: str) -> None:
    wanted = wizard.validate
    if wanted and wizard.console.terminal:
        wizard.console.print()
        wanted = wizard.console.confirm(
            "Validate API key with a test request? This makes a small API call.", default=True
        )
        wizard.console.print()
    if wanted:
        _validate(wizard, CredentialKind.API_KEY, secret, "API key")
    found = credential("anthropic", CredentialKind.API_KEY, secret, metadata={"source": source})
    _save(wizard, found, _SAVED_KEY)


def _validate(wizard: Wizard, kind: CredentialKind, secret: Secret, what: str) -> None:
    from moat.vault.validate import Outcome, check_anthropic

    wizard.console.print(f"Validating {what}...")
    verdict = wizard.check(check_anthropic(kind, secret, wizard.upstream))
    if verdict.outcome is Outcome.VALID:
        wizard.console.print(f"{what[0].upper()}{what[1:]} is valid.")


def _import(wizard: Wizard) -> None:
    from moat.vault.local_login import claude_login

    login = claude_login(dt.datetime.now(dt.UTC))
    insist(_wrong_token(login.token.reveal()), "run `claude` on this machine and log in again")
    console = wizard.console
    console.print()
    console.print("Found Claude Code credentials.")
    console.print(f"  Subscription: {login.subscription or 'not known'}")
    console.print(f"  Expires: {timestamp(login.expires_at) if login.expires_at else 'not known'}")
    console.print()
    found = credential(
        "anthropic",
        CredentialKind.OAUTH,
        login.token,
        expires_at=login.expires_at,
        metadata={
            "source": "import",
            "subscription": login.subscription,
            "scopes": " ".join(login.scopes),
            "rate_limit_tier": login.rate_limit_tier,
        },
    )
    _save(wizard, found, "Claude Code credentials imported to {}")


def _save(wizard: Wizard, found: Credential, text: str) -> None:
    """And tell a person where it will go; before the question the guide's screens leave no room for it."""
    wizard.save(found, text)
    if wizard.console.terminal:
        header = "x-api-key" if found.info.kind is CredentialKind.API_KEY else "authorization (Bearer)"
        hosts = ", ".join(found.info.hosts)
        wizard.console.print(f"It goes to {hosts} and nowhere else, in the header {header}.")


def _wrong_key(text: str) -> str:
    if text.startswith(OAUTH_PREFIX):
        return "this is a subscription token, not an API key"
    if not text.startswith(API_KEY_PREFIX):
        return f"an Anthropic API key starts with {API_KEY_PREFIX}"
    return misshapen(text)


def _wrong_token(text: str) -> str:
    if not text.startswith(OAUTH_PREFIX):
        return f"a Claude subscription token starts with {OAUTH_PREFIX}"
    return misshapen(text)
