"""What a run may spend of the network, and what it has spent. The counters live as long as the proxy.

Every budget that matches a host applies to it: one for all hosts, others for some of them. A request that
policy has let through spends one of `requests`; bytes are spent as they pass, before they are sent on. What
is known beforehand (a Content-Length) is refused before it begins; what turns out too long is cut, visibly.
No request, connection or header of the sandbox gives anything back.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic

from moat.arguments import check, check_range
from moat.dataclass import dataclass
from moat.proxy.events import Denial, DeniedError
from moat.proxy.stream import StreamError
from moat.rules import HostPattern

_MINUTE = 60.0
_BOUNDS = ("requests", "requests_per_minute", "bytes_per_minute", "upload", "download", "response")
_HINT = (
    "this is a limit that the person who started the run has set: do not try to get around it; "
    "do without, or tell the user, who can raise network.budget in agent.yaml and start a new run"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Bounds for the hosts that `host` matches, together. None: no bound."""

    host: HostPattern | None = None  # None: all hosts
    requests: int | None = None
    requests_per_minute: int | None = None  # in any 60 seconds
    bytes_per_minute: int | None = None  # of `upload` and `download` together, in any 60 seconds
    upload: int | None = None  # bytes of request heads and bodies, and of what follows an upgrade
    download: int | None = None  # bytes of response heads and bodies, and of what follows an upgrade
    response: int | None = None  # bytes of a single response's body, as the server sends it

    def __post_init__(self) -> None:
        """Raises ArgumentError for a bound below 1: some would take 0 for none at all."""
        for name in _BOUNDS:
            most = getattr(self, name)
            if most is not None:
                check(name, most, int)
                check_range(name, most, 1)

    def applies(self, host: str, port: int) -> bool:
        """Whether an authority in canonical form spends from this."""
        pattern = self.host
        if pattern is None:
            return True
        return pattern.names(host) and (pattern.port in {None, 0} or pattern.port == port)

    def __str__(self) -> str:
        return f"network.budget.hosts: {self.host}" if self.host is not None else "network.budget"


class Account:
    """One budget with what was spent of it."""

    __slots__ = ("_clock", "_moved", "_recent", "budget", "download", "requests", "upload")

    def __init__(self, budget: Budget, clock: Callable[[], float] = monotonic) -> None:
        self.budget = budget
        self.requests = 0
        self.upload = 0
        self.download = 0
        self._clock = clock
        self._recent: deque[float] = deque(maxlen=budget.requests_per_minute or 0)
        self._moved = _Minute(budget.bytes_per_minute) if budget.bytes_per_minute else None

    def objection(self) -> Denial | None:
        """Why no request may begin now, or None."""
        budget = self.budget
        for name in ("requests", "upload", "download"):
            most = getattr(budget, name)
            if most is not None and getattr(self, name) >= most:
                return self._spent(name, most)
        if budget.requests_per_minute and len(self._recent) == budget.requests_per_minute:
            wait = self._recent[0] + _MINUTE - self._clock()
            if wait > 0:
                return self._too_fast("requests", budget.requests_per_minute, wait)
        if self._moved is not None and (wait := self._moved.wait(1, self._clock())) > 0:
            return self._too_fast("bytes", self._moved.most, wait)
        return None

    def begin(self) -> None:
        self.requests += 1
        if self.budget.requests_per_minute:
            self._recent.append(self._clock())

    def spend_up(self, size: int) -> None:
        """Raises DeniedError when `size` more bytes are more than there is."""
        most = self.budget.upload
        if most is not None and self.upload + size > most:
            raise DeniedError(self._spent("upload", most))
        self._move(size)
        self.upload += size

    def spend_down(self, size: int) -> None:
        """Raises DeniedError when `size` more bytes are more than there is."""
        most = self.budget.download
        if most is not None and self.download + size > most:
            raise DeniedError(self._spent("download", most))
        self._move(size)
        self.download += size

    def _move(self, size: int) -> None:
        """Raises DeniedError when `size` more bytes are too many for this minute."""
        if self._moved is not None and size:
            now = self._clock()
            if (wait := self._moved.wait(size, now)) > 0:
                raise DeniedError(self._too_fast("bytes", self._moved.most, wait))
            self._moved.add(size, now)

    def check_ahead(self, *, upload: int = 0, download: int = 0) -> None:
        """Raises DeniedError for a body that is known to be more than there is. Spends nothing."""
        budget = self.budget
        if budget.upload is not None and self.upload + upload > budget.upload:
            raise DeniedError(self._spent("upload", budget.upload))
        if budget.download is not None and self.download + download > budget.download:
            raise DeniedError(self._spent("download", budget.download))
        size = max(upload, download)
        if self._moved is not None and size and (wait := self._moved.wait(size, self._clock())) > 0:
            raise DeniedError(self._too_fast("bytes", self._moved.most, wait))

    def check_response(self, size: int) -> None:
        """Raises DeniedError for a response body of `size` bytes or more that is too long."""
        most = self.budget.response
        if most is not None and size > most:
            reason = f"the response is larger than {most} bytes"
            raise DeniedError(Denial("budget", reason, f"{self.budget}: response {most}", _HINT))

    def _spent(self, what: str, most: int) -> Denial:
        unit = "requests" if what == "requests" else f"bytes of {what}"
        whom = "this run" if self.budget.host is None else f"{self.budget.host} in this run"
        reason = f"the budget of {most} {unit} for {whom} does not allow it"
        return Denial("budget", reason, f"{self.budget}: {what} {most}", _HINT)

    def _too_fast(self, what: str, most: int, seconds: float) -> Denial:
        whom = "this run" if self.budget.host is None else str(self.budget.host)
        rule = f"{self.budget}: {what}_per_minute {most}"
        if seconds == math.inf:
            reason = f"it alone is more than the {most} {what} per minute that {whom} may move"
            return Denial("budget", reason, rule, _HINT)
        wait = math.ceil(seconds)
        return Denial(
            code="rate",
            reason=f"more than {most} {what} per minute for {whom}; the next request may go out in {wait} s",
            rule=rule,
            hint=f"wait {wait} s, then send the same request again; fewer requests need no waiting",
            retry_after=wait,
        )


class _Minute:
    """Bytes of the last 60 seconds: a number for each second of the clock, however many pieces come."""

    __slots__ = ("_seconds", "_sum", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self._seconds: deque[tuple[int, int]] = deque()  # a second, and the bytes in it
        self._sum = 0

    def wait(self, size: int, now: float) -> float:
        """Seconds until `size` more bytes fit; infinity for more than a minute's."""
        if size > self.most:
            return math.inf
        while self._seconds and self._seconds[0][0] + 1 + _MINUTE <= now:
            self._sum -= self._seconds.popleft()[1]
        over = self._sum + size - self.most
        for second, moved in self._seconds:
            if over <= 0:
                return 0.0
            over -= moved
            if over <= 0:
                return second + 1 + _MINUTE - now
        return 0.0

    def add(self, size: int, now: float) -> None:
        if not self._seconds or self._seconds[-1][0] != int(now):
            self._seconds.append((int(now), 0))
        second, moved = self._seconds.pop()
        self._seconds.append((second, moved + size))
        self._sum += size


class Accounts:
    """The budgets of a proxy. Without any, nothing is counted."""

    def __init__(self, budgets: Sequence[Budget] = (), clock: Callable[[], float] = monotonic) -> None:
        self.all = tuple(Account(budget, clock) for budget in budgets)

    def at(self, host: str, port: int) -> tuple[Account, ...]:
        """Those that an authority spends from."""
        return tuple(account for account in self.all if account.budget.applies(host, port))


class Spending:
    """What one exchange or tunnel spends; made when it may begin."""

    __slots__ = ("_accounts", "_response", "denial")

    def __init__(self, accounts: tuple[Account, ...], head: int = 0, length: int = 0) -> None:
        """A request with a head of `head` bytes and, as it says, a body of `length`.

        Raises DeniedError when it may not begin; then nothing is spent.
        """
        for account in accounts:
            if (objection := account.objection()) is not None:
                raise DeniedError(objection)
            account.check_ahead(upload=head + length)
        for account in accounts:
            account.begin()
            account.spend_up(head)
        self._accounts = accounts
        self._response = 0
        self.denial: Denial | None = None  # why a relay was ended

    def response(self, length: int) -> None:
        """A response whose body will have `length` bytes, as it says. Spends nothing. Raises DeniedError."""
        for account in self._accounts:
            account.check_response(length)
            account.check_ahead(download=length)

    def sent(self, size: int) -> None:
        """Bytes that go up. Raises DeniedError; then they must not."""
        for account in self._accounts:
            account.spend_up(size)

    def received(self, size: int) -> None:
        """Bytes that go down. Raises DeniedError; then they must not."""
        for account in self._accounts:
            account.spend_down(size)

    def received_body(self, size: int) -> None:
        """Bytes of the response's body. Raises DeniedError; then they must not go down."""
        self._response += size
        for account in self._accounts:
            account.check_response(self._response)
        self.received(size)

    # A `relay.Watch`, for what follows an upgrade and for tunnels.

    def up(self, data: bytes) -> None:
        self._relayed(self.sent, len(data))

    def down(self, data: bytes) -> None:
        self._relayed(self.received, len(data))

    def _relayed(self, spend: Callable[[int], None], size: int) -> None:
        try:
            spend(size)
        except DeniedError as error:
            self.denial = error.denial
            raise StreamError(error.denial.reason) from None
