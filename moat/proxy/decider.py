"""Requests put to somebody outside: a program's own function, or a person who is asked.

The question is the last one before anything is opened, resolved or fetched for a request. A decider narrows
what policy allows; only what no rule decides (`Policy.mode` "ask") is its own to allow. Whatever goes wrong
is a refusal: an answer that is none, an exception, silence until the deadline, too many questions at once. A
request that is held holds one connection of its client, and nothing else.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable

import anyio

from moat.dataclass import dataclass
from moat.proxy.events import Denial, DeniedError
from moat.proxy.stream import Stream, StreamError

_log = logging.getLogger(__name__)
_TRY_AGAIN_SECONDS = 5
_RULE = "the program that hosts this proxy decides about each request"


@dataclass(frozen=True, slots=True)
class Question:
    """A request that policy does not refuse. No credential is in it."""

    exchange: int  # its number, as in `ExchangeFinished.id`
    scheme: str  # `https`, `http`
    host: str  # canonical, see `Authority`
    port: int
    method: str
    url: str
    headers: tuple[tuple[str, str], ...]  # as the sandbox sent them, secrets redacted
    grants: tuple[str, ...]  # credentials that may go out with it
    undecided: bool  # no rule allows it either: policy "ask" leaves it to the decider alone


Decider = Callable[[Question], Awaitable[bool | Denial]]
"""True lets the request pass; False or a Denial refuses it; anything else refuses it as a mistake."""


class Desk:
    """Questions under way, a bounded number of them, each with a deadline."""

    def __init__(self, decider: Decider, *, seconds: float, most: int, every: bool = True) -> None:
        """every: False leaves out the requests that a rule allows."""
        self.every = every
        self._decider = decider
        self._seconds = seconds
        self._most = most
        self.waiting = 0

    async def ask(self, question: Question, client: Stream, *, at_eof: bool) -> None:
        """Returns when the request may pass. Raises DeniedError; StreamError when the client has left.

        at_eof: a client that has finished its direction waits for no answer.
        """
        if self.waiting >= self._most:
            reason = f"{self._most} other requests already wait for a decision"
            hint = f"wait {_TRY_AGAIN_SECONDS} s, then send the same request again"
            raise DeniedError(Denial("decider", reason, _RULE, hint, _TRY_AGAIN_SECONDS))
        self.waiting += 1
        try:
            answer = await self._answer(question, client, at_eof=at_eof)
        finally:
            self.waiting -= 1
        if answer is not None:
            raise DeniedError(answer)

    async def _answer(self, question: Question, client: Stream, *, at_eof: bool) -> Denial | None:
        answer: object = None
        client.deadline = math.inf  # the client waits for us; our own deadline is below
        with anyio.move_on_after(self._seconds) as scope:
            client.when_gone(scope.cancel, at_eof=at_eof)
            try:
                answer = await self._decider(question)
            except Exception:
                _log.exception("the decider failed on %s %s", question.method, question.url)
                return _refusal(question, "it could not be decided: the decider failed")
            finally:
                client.when_gone(None)
        if client.broken or (at_eof and client.ended):
            client.abort("client went away")
            raise StreamError("client went away")
        if scope.cancel_called:  # also when the decider caught the cancellation and answered all the same
            return _refusal(question, f"nobody decided about it within {self._seconds:g} s")
        if answer is True:
            return None
        if isinstance(answer, Denial):
            return answer
        if answer is False:
            return _refusal(question, "it was decided that it may not be made")
        _log.error("the decider answered %s; True, False or a Denial is needed", type(answer).__name__)
        return _refusal(question, "it could not be decided: the decider's answer was none")


def _refusal(question: Question, why: str) -> Denial:
    what = f"{question.method} {question.url.partition('?')[0][:200]}"
    return Denial("decider", f"{what}: {why}", _RULE, "tell the user what was refused; do not work around it")
