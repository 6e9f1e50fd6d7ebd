"""`moat grant mcp NAME`: the token or key of one MCP server, bound to the host of that server."""

from __future__ import annotations

import argparse
import datetime as dt
import re
from collections.abc import Sequence
from pathlib import Path

from moat import config
from moat.cli.common import add_credential_options
from moat.cli.granting import Wizard, insist, misshapen, read_stdin, source_options, walk
from moat.cli.parser import Parser
from moat.config import WELL_KNOWN, McpServer, check_url
from moat.errors import ConfigError, UsageError
from moat.grants import Credential, CredentialInfo, CredentialKind, Grant, Secret
from moat.runtime.mcp import authority_of, bound_host

_BEARER = re.compile(r"bearer(?=.{8})", re.IGNORECASE)  # white space is gone by then


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="moat grant mcp",
        description="Store the token or key of an MCP server. It goes to the host of that server only.",
        epilog="An MCP server that wants a login in the browser: `moat grant oauth NAME --url URL`.",
    )
    parser.add_argument("name", metavar="NAME", help="name of the credential; agent.yaml calls it mcp:NAME")
    parser.add_argument("--url", help="of the server (default: the one in agent.yaml, or a well-known one)")
    source_options(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_credential_options(parser)
    chosen = parser.parse_args(argv)
    grant = str(Grant.parse(f"mcp:{chosen.name}"))
    server = server_of(grant, chosen.url)
    chosen.no_validate = True
    return walk(chosen, lambda wizard: _grant(wizard, grant, server, chosen))


def _grant(wizard: Wizard, grant: str, server: McpServer, chosen: argparse.Namespace) -> None:
    host = bound_host(authority_of(server))
    secret = read_stdin() if chosen.token_stdin else wizard.given() or _ask(wizard, host)
    secret = _plain(secret)
    insist(misshapen(secret.reveal()), "check the token")
    info = CredentialInfo(
        name=grant,
        kind=CredentialKind.TOKEN,
        hosts=(host,),
        created_at=dt.datetime.now(dt.UTC),
        metadata={"url": server.url},
    )
    wizard.save(Credential(info, secret), f"Credential for {host} saved to {{}}")


def server_of(grant: str, url: str | None) -> McpServer:
    """The server that a credential is for: named by its URL, by agent.yaml here, or well known.

    Raises UsageError, ConfigError.
    """
    name = grant.partition(":")[2]
    if url is None:
        found = {server.url for server in _configured() if server.grant == grant}
        if name in WELL_KNOWN:
            found.add(WELL_KNOWN[name].url)  # a workspace does not say what a name means that is known
        if len(found) != 1:
            why = "is not known" if not found else f"is one of {', '.join(sorted(found))}"
            kind = grant.partition(":")[0]
            raise UsageError(
                f"the URL of the MCP server {why}",
                hint=f"moat grant {kind} {name} --url https://…; the credential is bound to its host",
            )
        (url,) = found
    if problem := check_url(url):
        raise UsageError(problem, hint="--url https://mcp.example.com/mcp")
    server = McpServer(name=name, url=url)
    if server.local:
        raise UsageError(
            "a credential never goes over plain http, not even on this machine",
            hint="whoever listens on the port first would get it; let the server read its own secret",
        )
    authority_of(server)
    return server


def _configured() -> tuple[McpServer, ...]:
    """The servers of the workspace that the user stands in. A file that is wrong names none."""
    try:
        return config.load(Path.cwd()).mcp
    except ConfigError:
        return ()


def _ask(wizard: Wizard, host: str) -> Secret:
    console = wizard.console
    if not console.terminal:
        raise UsageError(
            "no terminal to ask at, and no credential given",
            hint="pipe it into the same command with --token-stdin",
        )
    console.print(f"The credential will be bound to {host} and go nowhere else.")
    return console.hidden("Token or API key: ", misshapen)


def _plain(secret: Secret) -> Secret:
    """Without the scheme that is often copied along with a token."""
    return Secret(_BEARER.sub("", secret.reveal(), count=1)) if _BEARER.match(secret.reveal()) else secret
