"""`moat grant aws --role ARN`: the role of AWS that runs may act in. Nothing secret is stored."""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import os
from collections.abc import Sequence

from moat.cli.common import add_credential_options
from moat.cli.menu import Console
from moat.cli.output import emit_json
from moat.cli.parser import Parser
from moat.config import UpstreamConfig, load_user
from moat.errors import UsageError
from moat.paths import Home
from moat.vault import open_vault
from moat.vault.aws.role import Role, parse_duration
from moat.vault.index import describe

_SESSION = "moat-grant-test"  # what AWS is told that the first keys are for


def main(argv: Sequence[str]) -> int:
    chosen = _parser().parse_args(argv)
    home, console = Home.from_environment(), Console(json=chosen.json)
    upstream = load_user(home).upstream
    role = Role(
        chosen.role or _ask(console),
        chosen.region,
        parse_duration(chosen.session_duration),
        chosen.external_id,
        chosen.aws_profile or os.environ.get("AWS_PROFILE", ""),
    )
    if not chosen.no_validate:
        console.print(f"Assuming {role.arn}...")
        console.print(f"Authenticated as {asyncio.run(_check(role, upstream))}.")
    vault, info = open_vault(home), role.info(dt.datetime.now(dt.UTC))
    vault.note(info)
    console.print("AWS role granted. No key was stored: every run gets its own from AWS, on this machine.")
    console.print("The proxy signs requests to *.amazonaws.com with it, and nothing else.")
    console.print("Use it with: moat run --grant aws -- aws sts get-caller-identity")
    if chosen.json:
        emit_json(describe(info) | {"store": None, "location": vault.location(info.name)})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="moat grant aws",
        description="Let runs act in a role of AWS. Your own AWS credentials (the shell's variables, "
        "~/.aws, or whatever the `aws` command knows) assume it on this machine. The sandbox never gets a "
        "key: requests to *.amazonaws.com are signed by the proxy.",
    )
    add = parser.add_argument
    add("--role", metavar="ARN", help="e.g. arn:aws:iam::123456789012:role/agents; asked for if not given")
    add(
        "--region",
        default="us-east-1",
        help="of clients in the sandbox, and of the token service (us-east-1)",
    )
    add(
        "--session-duration",
        metavar="TIME",
        default="15m",
        help="how long keys are good for, 15m to 12h (15m); they are renewed while a run lives",
    )
    add("--external-id", metavar="ID", default="", help="what the role's trust policy may ask for")
    add("--aws-profile", metavar="NAME", default="", help="of your ~/.aws (default: AWS_PROFILE)")
    add("--no-validate", action="store_true", help="do not assume the role now")
    add("--json", action="store_true", help="print the result as JSON")
    add_credential_options(parser)
    return parser


def _ask(console: Console) -> str:
    if not console.terminal:
        raise UsageError("which role?", hint="moat grant aws --role arn:aws:iam::123456789012:role/agents")
    return console.line("ARN of the role: ")


async def _check(role: Role, upstream: UpstreamConfig) -> str:
    """Who one is in the role. Raises GrantError."""
    from moat.vault.aws.hostkeys import host_keys
    from moat.vault.aws.sts import assume

    return (await assume(role, _SESSION, host_keys(role.profile), upstream)).user
