"""`moat revoke NAME`: forget a credential. Live runs lose it with their next request."""

from __future__ import annotations

from collections.abc import Sequence

from moat.cli.common import add_credential_options
from moat.cli.output import emit, emit_json
from moat.cli.parser import Parser
from moat.errors import GrantError
from moat.paths import Home
from moat.vault import open_vault
from moat.vault.index import describe


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="moat revoke",
        description="Forget a stored credential. It stays valid at its vendor: revoke it there as well.",
    )
    parser.add_argument("name", help="a name of `moat grant list`")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_credential_options(parser)
    options = parser.parse_args(argv)
    vault = open_vault(Home.from_environment())
    try:
        place = vault.location(options.name)
        info = vault.delete(options.name)
    except GrantError as error:
        raise GrantError(str(error), hint="`moat grant list` shows what is stored") from None
    if options.json:
        emit_json(describe(info) | {"location": place})
    else:
        emit(f"{info.name} removed from {place}")
    return 0
