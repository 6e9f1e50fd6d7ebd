"""The environment of commands in a sandbox, and of programs that use a proxy of ours outside of one."""

from __future__ import annotations

from collections.abc import Mapping

from moat.runtime.sandbox import CA_BUNDLE, PROXY_URL, TERM
from moat.runtime.trust import TRUST_VARIABLES, trust_environment

_PROXY = ("HTTP_PROXY", "HTTPS_PROXY")
_LOCAL = "localhost,127.0.0.1,::1"
# Whoever could set these would lead a tool around the proxy, or away from the CA it has to trust.
_PROTECTED = frozenset(
    name.lower()
    for name in (
        *TRUST_VARIABLES,
        *_PROXY,
        "NO_PROXY",
        "ALL_PROXY",
        "FTP_PROXY",
        "CURL_ALL_PROXY",
        "NODE_USE_ENV_PROXY",
        "MOAT_RUN_ID",
    )
)


def protected(env: Mapping[str, str]) -> tuple[str, ...]:
    """The names in a user's `env` that a run ignores."""
    return tuple(name for name in env if name.lower() in _PROTECTED)


def client_environment(proxy: str, bundle: str) -> dict[str, str]:
    """What leads programs to the proxy at the URL `proxy`, and makes them trust the PEM file `bundle`."""
    proxies = {spelling: proxy for name in _PROXY for spelling in (name, name.lower())}
    return {
        **proxies,
        "NO_PROXY": _LOCAL,
        "no_proxy": _LOCAL,
        "NODE_USE_ENV_PROXY": "1",
        **trust_environment(bundle),
    }


def sandbox_environment(
    *, run_id: str, tty: bool, placeholders: Mapping[str, str], user: Mapping[str, str]
) -> dict[str, str]:
    """Moat's variables, then the grants' placeholders, then the user's own. Later ones win."""
    env = {
        **client_environment(PROXY_URL, CA_BUNDLE),
        "LANG": "C.UTF-8",
        "MOAT_RUN_ID": run_id,
    }
    if tty:
        env["TERM"] = TERM
    refused = set(protected(user))
    return env | dict(placeholders) | {name: value for name, value in user.items() if name not in refused}
