"""What the proxy tells its owner: frozen values, already free of credentials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from moat.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Denial:
    """Why an exchange or a tunnel was refused, in words for a person and for a model."""

    code: str  # stable: policy, budget, rate, address, authority, credential-host, malformed, journal…
    reason: str  # what was refused and why
    rule: str  # the rule or default that decided: `network.policy: strict`, `deny * /admin/**`
    hint: str = ""  # what the user can do about it
    retry_after: int = 0  # seconds after which the same request would pass; 0: it would not


@dataclass(frozen=True, slots=True)
class Warned(Denial):
    """What policy objects to and lets through: it is recorded, and the exchange goes on."""


@dataclass(frozen=True, slots=True)
class Undecided(Denial):
    """What no rule decides, in a policy that asks. Where nobody can be asked, a denial like any other."""


class DeniedError(Exception):
    """Leaves the straight way of an exchange or a tunnel with a denial."""

    def __init__(self, denial: Denial) -> None:
        super().__init__(denial.reason)
        self.denial = denial


class ExchangeFinished(NamedTuple):
    """One request with its response, or a refused one. Becomes one line of `network.jsonl`."""

    started: float  # seconds since the epoch
    duration: float  # seconds until the last byte of the response
    method: str  # `CONNECT` for a refused or opaque tunnel
    url: str  # scheme://host[:port]/target; credentials never appear: the target is as the sandbox sent it
    status: int  # 0: no response was sent
    request_headers: Sequence[tuple[str, str]]  # as the sandbox sent them, secrets redacted
    response_headers: Sequence[tuple[str, str]]  # as the sandbox got them
    request_bytes: int  # body bytes that went up
    response_bytes: int  # body bytes that came down
    messages: tuple[int, int] = (0, 0)  # up and down; of WebSockets with a credential, whose frames are read
    grants: tuple[str, ...] = ()  # credentials that were injected
    denial: Denial | None = None
    warning: Denial | None = None  # policy objects to it and let it through
    error: str = ""  # `upstream closed early`, `client went away`…
    id: int = 0  # number of the exchange in its run, in the order in which they began
    protocol: str = "http/1.1"  # what the client spoke, as in ALPN: or `h2`
