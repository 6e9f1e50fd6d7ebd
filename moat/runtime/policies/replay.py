"""What another policy would have said to the requests of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from moat.dataclass import dataclass
from moat.proxy.policy import Policy
from moat.runtime.policies.recorded import Outcome, Recorded, judge


@dataclass(frozen=True, slots=True)
class Change:
    """Requests with one method and URL (without query) that would fare differently."""

    method: str
    url: str
    was: Outcome
    now: Outcome
    rule: str  # what decides now; empty for what is allowed
    count: int


def replay(done: Iterable[Recorded], policy: Policy) -> list[Change]:
    """What would change, in the order in which it first happened."""
    found: Counter[tuple[str, str, Outcome, Outcome, str]] = Counter()
    for item in done:
        verdict = judge(policy, item.request)
        if verdict.outcome != item.outcome:
            request = item.request
            found[request.method, request.url, item.outcome, verdict.outcome, verdict.rule] += 1
    return [Change(*key, count) for key, count in found.items()]
