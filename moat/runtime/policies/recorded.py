"""What a run asked of the network, as its trace has it, and what a policy says to each request."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal
from urllib.parse import urlsplit

from moat.authority import Authority, AuthorityError, parse_authority
from moat.config import McpServer, RunConfig
from moat.dataclass import dataclass
from moat.proxy.events import Denial, ExchangeFinished, Undecided, Warned
from moat.proxy.policy import HOST_NAME, Policy
from moat.vault.providers import grant_hosts

Outcome = Literal["allow", "warn", "ask", "deny"]
_BY_POLICY = frozenset({"policy", "ask"})  # codes of denials that a policy, or its user, has decided


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `CONNECT` to a port of the user's machine stands for all that was said there."""

    scheme: str
    host: str  # canonical
    port: int
    method: str
    target: str  # origin-form, query included
    headers: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def url(self) -> str:
        """Without its query, which may hold what is nobody's business."""
        authority = Authority(self.host, self.port)
        if not self.scheme:
            return str(authority)
        return f"{self.scheme}://{authority.host_header(self.scheme)}{self.path}"


@dataclass(frozen=True, slots=True)
class Recorded:
    """A request of a run, and what became of it there."""

    request: Request
    outcome: Outcome
    granted: bool  # a credential went out with it


@dataclass(frozen=True, slots=True)
class Verdict:
    outcome: Outcome
    rule: str = ""  # what decided; empty for what is allowed
    reason: str = ""


def recorded(exchanges: Iterable[ExchangeFinished]) -> tuple[list[Recorded], int]:
    """The requests that a policy decides about, and how many exchanges are none.

    Those are SSH, what was no HTTP, and what was refused for another reason: an address, a budget.
    """
    found, others = [], 0
    for exchange in exchanges:
        denial = exchange.denial
        request = _request(exchange)
        if request is None or (denial is not None and denial.code not in _BY_POLICY):
            others += 1
            continue
        outcome: Outcome = "warn" if exchange.warning else "allow"
        if denial is not None:
            outcome = "ask" if denial.code == "ask" else "deny"
        found.append(Recorded(request, outcome, granted=bool(exchange.grants)))
    return found, others


def parse_url(method: str, url: str) -> Request:
    """A request from its method and URL. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise ValueError(f"{url!r} is not a URL, e.g. https://api.example.com/path")
    try:
        where = parse_authority(parts.netloc, default_port=443 if parts.scheme == "https" else 80)
    except AuthorityError as error:
        raise ValueError(str(error)) from None
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Request(parts.scheme, where.host, where.port, method, target)


def judge(policy: Policy, request: Request) -> Verdict:
    """What the policy says, before it is known where the name of the host leads."""
    site = policy.site(request.host, request.port)
    denial: Denial | None = site.denial
    if denial is None and request.scheme:
        denial = site.exchange(request.scheme, request.method, request.target, request.headers)
    if denial is None:
        return Verdict("allow")
    kinds: dict[type[Denial], Outcome] = {Warned: "warn", Undecided: "ask"}
    return Verdict(kinds.get(type(denial), "deny"), denial.rule, denial.reason)


def opened(grants: Iterable[str], servers: Iterable[McpServer] = ()) -> tuple[str, ...]:
    """Host patterns that grants and MCP servers open whatever is listed. Raises GrantError."""
    hosts: dict[str, None] = {}
    for name in grants:
        hosts.update(dict.fromkeys(grant_hosts(name)))
    for server in servers:
        if server.url.startswith("https://"):
            hosts[urlsplit(server.url).netloc] = None
    return tuple(hosts)


def opened_by(config: RunConfig, grants: Iterable[str] = ()) -> tuple[str, ...]:
    """What the grants and servers of a file open, and `grants` that flags add."""
    return opened((*config.needed_grants, *grants), config.mcp)


def _request(exchange: ExchangeFinished) -> Request | None:
    if "://" not in exchange.url:
        try:
            where = parse_authority(exchange.url)
        except AuthorityError:
            return None
        return Request("", where.host, where.port, exchange.method, "") if where.host == HOST_NAME else None
    headers = tuple(
        (name.encode("latin-1"), value.encode("latin-1")) for name, value in exchange.request_headers
    )
    scheme, _, rest = exchange.url.partition("://")
    at = min((rest.find(mark) for mark in "/?" if mark in rest), default=len(rest))
    try:  # not by urlsplit: the target is to be judged as it was sent
        where = parse_authority(rest[:at], default_port=443 if scheme == "https" else 80)
    except AuthorityError:
        return None
    return Request(scheme, where.host, where.port, exchange.method, rest[at:] or "/", headers)
