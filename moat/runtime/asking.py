"""Questions to the user: what no rule of a run with `policy: ask` decides is held until somebody answers.

All requests for one host and port are one question, with one deadline. A client that leaves takes its request
with it; when the last one has left, the question waits a little (clients try again) and is withdrawn. Nobody
answers in time: refused, and refused at once for a while after that, so that an unattended run does not
wait a minute for each of its requests.

What a sandbox can cause is bounded: requests that wait, questions at one time and in a minute. The bounds
lie below that of `Desk`, so that what needs no question never waits behind one. An answer opens a host and
port; it never lets a credential out that the rules do not (`_WITH_CREDENTIAL`).
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import field, replace

import anyio

from moat.config import AskConfig
from moat.dataclass import dataclass
from moat.errors import UsageError
from moat.journal import Journal
from moat.proxy.decider import Question
from moat.proxy.events import Denial
from moat.runtime.questions import Answer, Asked, named

_REQUESTS = 48  # that wait at one time; `Limits.questions` is 64
_FOR_ONE = 16  # of them for one host
_QUESTIONS = 16  # at one time: more lines nobody reads
_PER_MINUTE = 30  # new questions; who asks faster wants a tired user
_LINGER = 5.0  # seconds without any client: pip comes back after one
_MISSED_SECONDS = 300.0  # in which a host that nobody answered for is refused at once
_MISSED = 64  # of those, the newest
_VERB = re.compile(r"[A-Z]{1,16}(?:-[A-Z]{1,16})?")
_TICK = 0.2  # seconds
_RULE = "network.policy: ask"
_LATER = 5  # seconds


@dataclass(slots=True)
class _Held:
    """A question that waits, with the verdict once it has been given."""

    asked: Asked
    deadline: float  # monotonic
    requests: int = 0
    idle_since: float = 0.0  # monotonic, while there are no requests
    verdict: bool | Denial = False
    done: anyio.Event = field(default_factory=anyio.Event)


class Asking:
    """The questions of one run and what was answered. `decide` is its proxy's decider."""

    def __init__(self, run: str, config: Callable[[], AskConfig], journal: Journal) -> None:
        """run: its name. config: the user's words at this moment; called for each new question."""
        self._run = run
        self._config = config
        self._journal = journal
        self._held: dict[tuple[str, int], _Held] = {}
        self._answers: list[tuple[Answer, float]] = []  # newest first, with the monotonic time of their end
        self._missed: dict[tuple[str, int], tuple[Asked, float]] = {}  # with the time of their end
        self._recent: deque[float] = deque(maxlen=_PER_MINUTE)
        self._changed = anyio.Event()
        self._closed = False

    # --- the proxy's side --------------------------------------------------------------------------

    async def decide(self, question: Question) -> bool | Denial:
        """Waits for the user where no rule has decided."""
        if not question.undecided:
            return True
        where = (question.host, question.port)
        if question.grants:
            return _with_credential(where, question.grants)
        if (known := self._known(where)) is not None:
            return known
        held = self._held.get(where)
        if held is None or held.done.is_set():
            if (refused := self._ask(question)) is not None:
                return refused
            held = self._held[where]
        elif held.requests >= _FOR_ONE or self._waiting >= _REQUESTS:
            return _busy(where)
        held.requests += 1
        self._tell()
        try:
            await held.done.wait()
            return held.verdict
        finally:
            held.requests -= 1
            held.idle_since = time.monotonic()
            self._tell()

    def _known(self, where: tuple[str, int]) -> bool | Denial | None:
        """What has been said already: in this run, then in the user's file, then by silence."""
        now = time.monotonic()
        self._answers = [(answer, until) for answer, until in self._answers if until > now]
        for answer, _ in self._answers:
            if answer.pattern.matches(*where):
                return answer.allow or self._refused(where)
        config = self._config()
        if any(pattern.matches(*where) for pattern in config.deny):
            return self._refused(where)
        if any(pattern.matches(*where) for pattern in config.allow):
            return True
        _, until = self._missed.get(where, (None, 0.0))
        return self._unanswered(where) if until > now else None

    def _ask(self, question: Question) -> Denial | None:
        """A new question, or why there cannot be one now."""
        where = (question.host, question.port)
        now = time.monotonic()
        hurried = len(self._recent) == _PER_MINUTE and now - self._recent[0] < 60
        if hurried or len(self._held) >= _QUESTIONS or self._waiting >= _REQUESTS:
            return _busy(where)
        self._recent.append(now)
        self._missed.pop(where, None)
        asked = Asked(
            host=question.host,
            port=question.port,
            scheme=question.scheme,
            method=_verb(question.method),
            path=_path(question.url),
            since=time.time(),
            requests=1,
        )
        self._held[where] = _Held(asked, now + self._config().timeout)
        self._journal.often("ask.asked", host=asked.host, port=asked.port)
        return None

    @property
    def _waiting(self) -> int:
        return sum(held.requests for held in self._held.values())

    # --- the user's side ---------------------------------------------------------------------------

    @property
    def waiting(self) -> tuple[Asked, ...]:
        """What waits for an answer, oldest first."""
        return tuple(
            replace(held.asked, requests=held.requests)
            for held in self._held.values()
            if not held.done.is_set()
        )

    @property
    def missed(self) -> tuple[Asked, ...]:
        """What nobody answered in time, and is refused for now."""
        now = time.monotonic()
        return tuple(replace(asked, requests=0) for asked, until in self._missed.values() if until > now)

    def answer(self, answer: Answer) -> int:
        """Take in what the user says; returns how many requests waited for it.

        It holds for later requests as well, unless its scope is `once`. Raises UsageError for a `once` that
        nothing waits for.
        """
        meant = [(where, held) for where, held in self._held.items() if answer.pattern.matches(*where)]
        if answer.scope == "once" and not meant:
            raise UsageError(f"no request for {answer.pattern} waits", hint="`moat ask` shows what does")
        if answer.scope != "once":
            lasting = answer.seconds if answer.scope == "for" else float("inf")
            older = [item for item in self._answers if item[0].pattern != answer.pattern]
            self._answers = [(answer, time.monotonic() + lasting), *older]
        for where in [where for where in self._missed if answer.pattern.matches(*where)]:
            del self._missed[where]
        requests = sum(held.requests for _, held in meant)
        self._journal.record(
            "ask.answered",
            host=str(answer.pattern),
            answer="allow" if answer.allow else "deny",
            scope=answer.scope,
            seconds=answer.seconds,
            by=answer.by,
            requests=requests,
        )
        for where, held in meant:
            del self._held[where]
            held.verdict = answer.allow or self._refused(where)
            held.done.set()
        self._tell()
        return requests

    async def changes(self) -> AsyncIterator[tuple[Asked, ...]]:
        """What waits, now and whenever it has changed; changes that follow closely are told as one."""
        while not self._closed:
            changed = self._changed
            yield self.waiting
            await changed.wait()
            await anyio.sleep(_TICK / 2)

    async def new(self) -> AsyncIterator[Asked]:
        """Each question once, when it comes up."""
        shown: set[Asked] = set()
        async for waiting in self.changes():
            now = {replace(question, requests=0) for question in waiting}
            for question in now - shown:
                yield question
            shown = now

    def close(self) -> None:
        """The run is over: nobody asks any more."""
        self._closed = True
        self._tell()

    async def tend(self) -> None:
        """End the questions whose time is over. Runs until it is cancelled."""
        while True:
            while self._held:
                await anyio.sleep(_TICK)
                for where, held in list(self._held.items()):
                    self._end_when_due(where, held)
            await self._changed.wait()

    def _end_when_due(self, where: tuple[str, int], held: _Held) -> None:
        now = time.monotonic()
        withdrawn = not held.requests and now - held.idle_since > _LINGER
        if not withdrawn and now < held.deadline:
            return
        del self._held[where]
        if not withdrawn:
            self._missed[where] = (held.asked, now + _MISSED_SECONDS)
            while len(self._missed) > _MISSED:
                del self._missed[next(iter(self._missed))]
        why = "the clients left" if withdrawn else "nobody answered"
        self._journal.often("ask.unanswered", host=held.asked.host, port=held.asked.port, why=why)
        held.verdict = self._unanswered(where)
        held.done.set()
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    # --- words -------------------------------------------------------------------------------------

    def _refused(self, where: tuple[str, int]) -> Denial:
        return Denial(
            "ask",
            f"the user does not want this run to reach {named(*where)}",
            _RULE,
            "this is the user's decision, not a fault to work around: do not try other hosts, encodings or "
            "tools; go on without it, or tell the user what it is needed for",
        )

    def _unanswered(self, where: tuple[str, int]) -> Denial:
        return Denial(
            "ask",
            f"the user was asked whether this run may reach {named(*where)}, and nobody has answered",
            _RULE,
            "do not work around it: go on without it, or tell the user, who can run "
            f"`moat approve {self._run} {named(*where)}`; then the same request works",
        )


def _with_credential(where: tuple[str, int], grants: tuple[str, ...]) -> Denial:
    """Asking is about reaching a host. What a credential may be used for is said by rules, beforehand."""
    return Denial(
        "policy",
        f"no rule of {named(*where)} allows this request, with which the credential {grants[0]} would go out",
        _RULE,
        "this is a decision of the person who started the run, not a fault to work around; to allow it, the "
        "user changes the rules of this host under network.rules in agent.yaml and starts a new run",
    )


def _busy(where: tuple[str, int]) -> Denial:
    return Denial(
        "ask",
        f"the user would have to be asked about {named(*where)}, and too many questions wait already",
        _RULE,
        f"wait {_LATER} s, then send the same request again",
        _LATER,
    )


def _verb(method: str) -> str:
    """`github.com` is a method to HTTP, and would stand before the host that is asked about."""
    return method if _VERB.fullmatch(method) else "?"


def _path(url: str) -> str:
    """The path of `scheme://authority/path?query`: a query may hold what is nobody's business."""
    _, _, rest = url.partition("://")
    path = rest.partition("?")[0]
    return path[path.find("/") :][:200] if "/" in path else "/"
