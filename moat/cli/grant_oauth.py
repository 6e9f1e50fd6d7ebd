"""`moat grant oauth NAME`: log in to an MCP server in the browser."""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import os
import sys
from collections.abc import Sequence

from moat.cli.common import add_credential_options
from moat.cli.grant_mcp import server_of
from moat.cli.granting import Wizard, read_stdin, walk
from moat.cli.parser import Parser
from moat.config import McpServer
from moat.errors import UsageError
from moat.grants import Credential, CredentialInfo, CredentialKind, Grant
from moat.runtime.mcp import authority_of, bound_host
from moat.vault.oauth.discovery import discover
from moat.vault.oauth.login import Identity, log_in
from moat.vault.oauth.tokens import Tokens
from moat.vault.oauth.web import Web, host_of


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="moat grant oauth",
        description="Log in to an MCP server in the browser. Moat keeps the login and renews it; it goes to "
        "the host of that server only.",
    )
    add = parser.add_argument
    add("name", metavar="NAME", help="name of the login; agent.yaml calls it oauth:NAME")
    add("--url", help="of the server (default: the one in agent.yaml, or a well-known one)")
    add(
        "--scope",
        action="append",
        default=[],
        help="ask for this (repeatable; default: what the server wants)",
    )
    add("--client-id", help="a client that you have registered, where the server registers none by itself")
    add("--client-secret-stdin", action="store_true", help="read the secret of that client from stdin")
    add("--no-browser", action="store_true", help="print the address and open nothing")
    add("--json", action="store_true", help="print the result as JSON")
    add_credential_options(parser)
    chosen = parser.parse_args(argv)
    grant = str(Grant.parse(f"oauth:{chosen.name}"))
    server = server_of(grant, chosen.url)
    identity = _identity(chosen)
    chosen.no_validate, chosen.token_stdin = True, chosen.client_secret_stdin

    def log_in_and_save(wizard: Wizard) -> None:
        tokens = asyncio.run(
            _log_in(wizard, server, identity, tuple(chosen.scope), browser=not chosen.no_browser)
        )
        wizard.save(_credential(grant, server, tokens), "Logged in; saved to {}")

    return walk(chosen, log_in_and_save)


def _identity(chosen: argparse.Namespace) -> Identity | None:
    if chosen.client_id is None:
        if chosen.client_secret_stdin:
            raise UsageError("--client-secret-stdin needs --client-id", hint="--client-id ID")
        return None
    secret = read_stdin().reveal() if chosen.client_secret_stdin else None
    return Identity(client_id=chosen.client_id, client_secret=secret)


async def _log_in(
    wizard: Wizard, server: McpServer, identity: Identity | None, scopes: tuple[str, ...], *, browser: bool
) -> Tokens:
    web = Web(wizard.upstream)
    authority = await discover(web, server.url)
    wizard.console.print(f"{host_of(server.url)} leaves the login to {host_of(authority.issuer)}.")

    def show(address: str) -> None:
        wizard.console.print("Open this address in a browser on this machine, and log in:")
        wizard.console.print()
        wizard.console.print(f"  {address}")
        wizard.console.print()
        if browser:
            _open(address)

    return await log_in(web, authority, scopes=scopes or authority.scopes, identity=identity, show=show)


def _open(address: str) -> None:
    """Open a browser if there is one with windows; one in the terminal would take it over."""
    if sys.platform != "darwin" and not any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    ):
        return
    from moat.cli import browser

    browser.show(address)


def _credential(grant: str, server: McpServer, tokens: Tokens) -> Credential:
    ends = None
    if tokens.refresh is None and tokens.lifetime is not None:
        ends = dt.datetime.fromtimestamp(tokens.obtained_at + tokens.lifetime, dt.UTC)
    info = CredentialInfo(
        name=grant,
        kind=CredentialKind.OAUTH,
        hosts=(bound_host(authority_of(server)),),
        created_at=dt.datetime.now(dt.UTC),
        expires_at=ends,
        metadata={"url": server.url, "renewed_at": host_of(tokens.client.token_endpoint)}
        if tokens.refresh
        else {"url": server.url},
    )
    return Credential(info, tokens.encode())
