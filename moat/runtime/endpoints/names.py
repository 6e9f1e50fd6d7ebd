"""Host names of endpoints, read and made. Everything that is not `localhost` or below it is foreign."""

from __future__ import annotations

import re

from moat.dataclass import dataclass

DOMAIN = "localhost"

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?:(?:(?P<endpoint>{_LABEL})\.)?(?P<run>{_LABEL})\.)?localhost")
_PORT = re.compile(r":[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Place:
    """What a host name means: all runs, one run, or one endpoint of it."""

    run: str | None = None
    endpoint: str | None = None

    @property
    def host(self) -> str:
        return ".".join(part for part in (self.endpoint, self.run, DOMAIN) if part)

    def url(self, port: int) -> str:
        return f"https://{self.host}:{port}"


def parse_name(name: str) -> Place | None:
    """The place that a name without port means; None when it is none of ours."""
    match = _HOST.fullmatch(name.lower())
    return Place(match["run"], match["endpoint"]) if match else None


def parse_host(host: bytes) -> Place | None:
    """The same for a Host field. Its port is not looked at: a tunnel may have given us another one."""
    try:
        text = host.decode("ascii")
    except UnicodeDecodeError:
        return None
    name, colon, port = text.partition(":")
    return None if colon and not _PORT.fullmatch(colon + port) else parse_name(name)


def variable(prefix: str, endpoint: str) -> str:
    """`MOAT_URL_ADMIN_API` for `admin-api`: a hyphen is not allowed in the name of a variable."""
    return f"{prefix}_{endpoint.upper().replace('-', '_')}"


def environment(run: str, endpoints: tuple[str, ...], port: int) -> dict[str, str]:
    """What tells the sandbox under which names the outside sees it."""
    whole = Place(run)
    env = {"MOAT_URL": whole.url(port), "MOAT_HOST": f"{whole.host}:{port}"}
    for endpoint in endpoints:
        place = Place(run, endpoint)
        env[variable("MOAT_URL", endpoint)] = place.url(port)
        env[variable("MOAT_HOST", endpoint)] = f"{place.host}:{port}"
    return env
