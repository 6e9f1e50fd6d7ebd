"""`ports:` of agent.yaml: servers in the sandbox that the user's browser may reach, each by a name."""

from __future__ import annotations

import re
from types import MappingProxyType

from moat.config.check import Checker, Node
from moat.errors import UsageError
from moat.regex import regex

_NAME = regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_RULE = "lower-case letters, digits and `-`, at most 63"
_OURS = frozenset({80, 443, 3128})  # Moat's own listeners in every sandbox: behind them is the run's proxy


def read(check: Checker, node: Node) -> MappingProxyType[str, int]:
    """`{web: 3000}`: endpoint -> port in the sandbox, in the order of the file."""
    found: dict[str, int] = {}
    for name, name_node, value_node in check.pairs(node, "ports"):
        port = check.integer(value_node, f"ports.{name}", 1, 65535)
        if not _NAME.fullmatch(name):
            check.wrong(name_node, f"{name!r} cannot be part of a host name: {_RULE}")
        elif port in _OURS:
            check.wrong(value_node, _taken(port))
        elif port is not None:
            found[name] = port
    return MappingProxyType(found)


def parse_port(text: str) -> tuple[str, int]:
    """`web=3000`, as the command line has it. Raises UsageError."""
    name, _, number = text.partition("=")
    if not re.fullmatch(r"[1-9][0-9]{0,4}", number):
        raise UsageError(f"--port {text}: not NAME=PORT, e.g. web=3000")
    check_port(name, int(number))
    return name, int(number)


def check_port(name: str, port: int) -> None:
    """Raises UsageError for what cannot be an endpoint."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"the endpoint {name!r} cannot be part of a host name", hint=f"a name is {_RULE}")
    if not 1 <= port <= 65535:
        raise UsageError(f"the endpoint {name}: {port} is not a port")
    if port in _OURS:
        raise UsageError(f"the endpoint {name}: {_taken(port)}")


def _taken(port: int) -> str:
    return f"port {port} is Moat's own in a sandbox; let the server listen on another"
