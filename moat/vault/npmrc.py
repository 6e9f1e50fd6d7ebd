"""Tokens and routes of the registries in the user's `~/.npmrc`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from moat.dataclass import dataclass
from moat.errors import GrantError
from moat.grants import Secret

_TOKEN_LINE = re.compile(r"//(?P<host>[A-Za-z0-9.-]+)(?P<path>/[^:\s]*)?:_authToken\s*=\s*(?P<token>.+)")
_ROUTE_LINE = re.compile(r"(?:@[A-Za-z0-9._~-]+:)?registry\s*=\s*https://(?P<host>[A-Za-z0-9.-]+)(?:/\S*)?")
_VARIABLE = re.compile(r"\$\{([^}?]+)\??\}")
_MAX_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Registry:
    """What `~/.npmrc` says of one host."""

    host: str
    token: Secret
    paths: tuple[str, ...]  # `/`, `/api/v4/projects/7/packages/npm/`
    routes: tuple[str, ...]  # lines that send scopes, or everything, there


def registries(environment: Mapping[str, str] = os.environ) -> tuple[Registry, ...]:
    """Every registry with a token, by host. Raises GrantError when the file cannot be read.

    A variable that is not set makes its line none: npm would send the text as it stands.
    """
    path = Path(environment.get("NPM_CONFIG_USERCONFIG") or Path.home() / ".npmrc")
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise GrantError(f"{path} cannot be read: {error.strerror}") from error
    lines = [line.strip() for line in text.splitlines()]
    tokens: dict[str, str] = {}
    paths: dict[str, list[str]] = {}
    routes: dict[str, list[str]] = {}
    for line in lines:
        if found := _TOKEN_LINE.fullmatch(line):
            host, token = found["host"].lower(), _expanded(found["token"], environment)
            if token and tokens.setdefault(host, token) == token:
                paths.setdefault(host, []).append(found["path"] or "/")
        elif found := _ROUTE_LINE.fullmatch(line):
            routes.setdefault(found["host"].lower(), []).append(line)
    return tuple(
        Registry(host, Secret(token), tuple(paths[host]), tuple(routes.get(host, ())))
        for host, token in sorted(tokens.items())
    )


def _expanded(value: str, environment: Mapping[str, str]) -> str:
    value = value.strip().strip("\"'")
    wanted = _VARIABLE.findall(value)
    if any(name not in environment for name in wanted):
        return ""
    return _VARIABLE.sub(lambda match: environment[match[1]], value)
