"""The forward proxy in five words.

connection  one socket from the sandbox (or from any client)
tunnel      one CONNECT: an authority, and TLS that we terminate
exchange    one request with its response
decision    what policy says about an authority or an exchange, with the reason
injection   putting the credential on an exchange that policy allowed

The way of a request, file by file: `server` accepts, `tunnel` finds out where to and terminates TLS,
`message` and `http1` read heads and bodies, `site` says what holds at that authority, `exchange` judges,
equips and carries, `upstream` connects, `stream` moves bytes, `trace` writes down what happened.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moat.authority import Authority
    from moat.grants import InjectionRule
    from moat.proxy.budget import Budget
    from moat.proxy.certs import RunCA
    from moat.proxy.decider import Decider, Question
    from moat.proxy.dialling import UpstreamOptions
    from moat.proxy.events import Denial, ExchangeFinished
    from moat.proxy.feed import Missed, Reader
    from moat.proxy.limits import Limits
    from moat.proxy.policy import Policy
    from moat.proxy.server import Proxy
    from moat.proxy.standalone import OpenProxy
    from moat.proxy.trace import Trace
    from moat.proxy.upstream import Upstream
    from moat.rules import HostRule, parse_host_rule

__all__ = [
    "Authority",
    "Budget",
    "Decider",
    "Denial",
    "ExchangeFinished",
    "HostRule",
    "InjectionRule",
    "Limits",
    "Missed",
    "OpenProxy",
    "Policy",
    "Proxy",
    "Question",
    "Reader",
    "RunCA",
    "Trace",
    "Upstream",
    "UpstreamOptions",
    "parse_host_rule",
]

# Resolved at first use (PEP 562): `moat --help` imports this package and must not pay for anyio.
_HOME = {
    "Authority": "moat.authority",
    "Budget": "moat.proxy.budget",
    "Decider": "moat.proxy.decider",
    "Denial": "moat.proxy.events",
    "ExchangeFinished": "moat.proxy.events",
    "HostRule": "moat.rules",
    "InjectionRule": "moat.grants",
    "Limits": "moat.proxy.limits",
    "Missed": "moat.proxy.feed",
    "OpenProxy": "moat.proxy.standalone",
    "Policy": "moat.proxy.policy",
    "Proxy": "moat.proxy.server",
    "Question": "moat.proxy.decider",
    "Reader": "moat.proxy.feed",
    "RunCA": "moat.proxy.certs",
    "Trace": "moat.proxy.trace",
    "Upstream": "moat.proxy.upstream",
    "UpstreamOptions": "moat.proxy.dialling",
    "parse_host_rule": "moat.rules",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
