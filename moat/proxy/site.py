"""What exchanges share: with all of a proxy, and with all that go to one authority over one connection.

What can be worked out before a request is there is worked out here, once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from functools import partial
from itertools import count
from time import time
from types import MappingProxyType

from moat.authority import Authority
from moat.dataclass import dataclass
from moat.grants import CredentialSource, LoginRule
from moat.proxy.budget import Account, Accounts
from moat.proxy.certs import RunCA
from moat.proxy.decider import Desk
from moat.proxy.download import Unreadable
from moat.proxy.events import Denial, ExchangeFinished
from moat.proxy.limits import Limits
from moat.proxy.logins import LoginTable
from moat.proxy.mcp import McpTable
from moat.proxy.mcp_filter import McpResponse
from moat.proxy.policy import Policy, SitePolicy
from moat.proxy.site_rules import InjectionTable, SiteRules
from moat.proxy.ssh import SshTunnel
from moat.proxy.tls import HTTP1
from moat.proxy.upstream import Upstream

SITES = 256  # authorities that are remembered


@dataclass(slots=True)
class Places:
    """How many of something may exist at one time."""

    free: int = 0

    def take(self, count: int = 1) -> bool:
        if self.free < count:
            return False
        self.free -= count
        return True

    def give_back(self, count: int = 1) -> None:
        self.free += count


@dataclass(frozen=True, slots=True)
class Setup:
    """What all exchanges of a proxy share."""

    policy: Policy
    ca: RunCA
    table: InjectionTable
    credentials: CredentialSource | None
    upstream: Upstream
    limits: Limits
    on_event: Callable[[ExchangeFinished], None]
    ready: Callable[[], Denial | None]
    on_use: Callable[[int, str, tuple[str, ...]], Denial | None]
    numbers: Iterator[int] = field(default_factory=lambda: count(1))  # of exchanges
    tunnels: Mapping[Authority, SshTunnel] = field(default_factory=lambda: MappingProxyType({}))
    mcp: McpTable = field(default_factory=McpTable)
    accounts: Accounts = Accounts()
    streams: Places = field(default_factory=Places)  # of HTTP/2
    held: Places = field(default_factory=Places)  # bytes of bodies that are read before they go up
    logins: LoginTable = field(default_factory=LoginTable)
    desk: Desk | None = None  # None: nobody is asked
    unreadable: Unreadable = "withhold"
    sites: OrderedDict[tuple[str, Authority, str], Site] = field(default_factory=OrderedDict)
    """Where connections went that were not refused: by scheme, authority and protocol."""
    refusals: OrderedDict[tuple[Authority, bool], Denial | None] = field(default_factory=OrderedDict)
    """What is said of an authority before its name is resolved, by whether its tunnel is for SSH alone."""

    def refused(
        self,
        method: str,
        url: str,
        status: int,
        *,
        denial: Denial | None = None,
        error: str = "",
        protocol: str = HTTP1,
    ) -> None:
        """Record what never became an exchange."""
        self.on_event(
            ExchangeFinished(
                started=time(),
                duration=0.0,
                method=method,
                url=url,
                status=status,
                request_headers=(),
                response_headers=(),
                request_bytes=0,
                response_bytes=0,
                denial=denial,
                error=error,
                id=next(self.numbers),
                protocol=protocol,
            )
        )


@dataclass(frozen=True, slots=True)
class Site:
    """Where an exchange goes, as CONNECT, capture or the request target said, and whether it may.

    A function of the setup, which does not change: connections to one authority share it.
    """

    scheme: str  # `https`: inside TLS that we terminated; `http`
    authority: Authority
    host: bytes  # the Host field that clients usually send: equal to it, nothing has to be parsed
    denial: Denial | None  # everything that is sent here is answered with this
    policy: SitePolicy
    rules: SiteRules
    accounts: tuple[Account, ...]  # budgets that exchanges spend from
    name: str  # of the authority
    prefix: str  # of its URLs
    response: McpResponse  # of a host that is not known to be an MCP server
    logins: Mapping[str, Sequence[LoginRule]]  # by path: where logins of the run are renewed
    plain: bool  # no login, budget, decider or body guard has a say in its exchanges
    protocol: str = HTTP1  # what the client speaks, as in ALPN

    @classmethod
    def of(
        cls,
        setup: Setup,
        scheme: str,
        authority: Authority,
        denial: Denial | None,
        protocol: str = HTTP1,
    ) -> Site:
        if denial is not None:
            return cls._made(setup, scheme, authority, denial, protocol)
        key = (scheme, authority, protocol)
        site = setup.sites.get(key)
        if site is None:
            site = setup.sites[key] = cls._made(setup, scheme, authority, None, protocol)
            if len(setup.sites) > SITES:
                setup.sites.popitem(last=False)
        return site

    @classmethod
    def _made(
        cls, setup: Setup, scheme: str, authority: Authority, denial: Denial | None, protocol: str
    ) -> Site:
        host, port = authority.host, authority.port
        header = authority.host_header(scheme).encode()
        policy, rules = setup.policy.site(host, port), setup.table.site(host, port, scheme)
        accounts, logins = setup.accounts.at(host, port), setup.logins.site(scheme, authority)
        return cls(
            scheme,
            authority,
            header,
            denial,
            policy,
            rules,
            accounts,
            name=str(authority),
            prefix=f"{scheme}://{header.decode()}",
            protocol=protocol,
            logins=logins,
            plain=not (logins or accounts or setup.desk or rules.guard),
            response=McpResponse(None, partial(setup.mcp.challenged, host)),
        )

    def url(self, target: bytes) -> str:
        """`target` as a URL; an absolute one that was refused before it was taken apart is one already."""
        if not target.startswith((b"/", b"*")):
            return target.decode("latin-1")
        return self.prefix + target.decode("latin-1")
