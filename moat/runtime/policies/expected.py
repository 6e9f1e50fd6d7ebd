"""`agent.policy-tests.yaml`, next to agent.yaml: what its network policy has to say to which request.

allow:
- https://pypi.org/simple/            # GET
deny:
- DELETE https://api.github.com/repos/acme/shop
ask: []                                 # and `warn`
"""

from __future__ import annotations

import re
from pathlib import Path

from moat.config.check import Checker, Node, TooMuchError
from moat.config.source import read_document
from moat.dataclass import dataclass
from moat.proxy.policy import Policy
from moat.runtime.policies.recorded import Outcome, Request, Verdict, judge, parse_url

FILE = "agent.policy-tests.yaml"
_METHOD = re.compile(r"[A-Z][A-Z-]*")
_OUTCOMES: tuple[Outcome, ...] = ("allow", "warn", "ask", "deny")


@dataclass(frozen=True, slots=True)
class Expectation:
    line: int  # in the file, from 1
    text: str  # as it is written
    request: Request
    wanted: Outcome


@dataclass(frozen=True, slots=True)
class Result:
    expectation: Expectation
    verdict: Verdict

    @property
    def met(self) -> bool:
        return self.verdict.outcome == self.expectation.wanted


def read(path: Path) -> list[Expectation]:
    """The expectations of a file. Raises ConfigError with every problem of it."""
    check = Checker(path.name)
    found: list[Expectation] = []
    try:
        root = read_document(path, check)
        if root is None:
            check.problem(1, 1, "it expects nothing; write e.g. `deny: [https://example.com/]`")
        else:
            for wanted, key, node in check.pairs(root, "the file"):
                if wanted in _OUTCOMES:
                    found += _expectations(check, node, wanted)
                else:
                    check.wrong(key, f"{wanted!r} is not one of {', '.join(_OUTCOMES)}")
    except TooMuchError:
        pass
    check.finish()
    return found


def results(policy: Policy, expectations: list[Expectation]) -> list[Result]:
    return [Result(expectation, judge(policy, expectation.request)) for expectation in expectations]


def _expectations(check: Checker, node: Node, wanted: Outcome) -> list[Expectation]:
    found = []
    for item in check.items(node, wanted, "[https://pypi.org/simple/]"):
        text = check.text(item, f"an entry of {wanted}")
        if text is None:
            continue
        try:
            found.append(Expectation(item.start_mark.line + 1, text, _request(text), wanted))
        except ValueError as error:
            check.wrong(item, str(error))
    return found


def _request(text: str) -> Request:
    """`URL` or `METHOD URL`. Raises ValueError."""
    method, _, url = text.rpartition(" ")
    if method and not _METHOD.fullmatch(method):
        raise ValueError(f"{text!r} is not `METHOD URL`, e.g. POST https://api.example.com/path")
    return parse_url(method or "GET", url)
