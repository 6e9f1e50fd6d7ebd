"""Questions that one can go back over: Esc leads to the one before, and keeps the answers before that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from moat.cli.menu import Console, SteppedBackError
from moat.grants import Secret

T = TypeVar("T")


class Walk(Console):
    """The console of a wizard, which is a function that asks one question after the other."""

    def __init__(self, *, json: bool = False) -> None:
        super().__init__(json=json)
        self._answers: list[tuple[str, Any]] = []  # with their questions
        self._given = 0  # how many of them the wizard has had since it was started (again)

    def through(self, wizard: Callable[[], T]) -> T:
        """What `wizard` returns. After Esc it is started again, and gets all answers but the last from here.

        So it does nothing before its last question that must not be done twice. Raises SteppedBackError
        for Esc at its first question.
        """
        self._answers = []
        while True:
            self._given = 0
            try:
                return wizard()
            except SteppedBackError:
                if not self._answers:
                    raise
                self._answers.pop()

    def print(self, text: str = "") -> None:
        if self._given == len(self._answers):  # else it is on the screen, above the question asked again
            super().print(text)

    def choose(self, question: str, answers: Sequence[str]) -> str:
        ask = super().choose
        return self._answer(question, lambda: ask(question, answers))

    def confirm(self, question: str, *, default: bool) -> bool:
        ask = super().confirm
        return self._answer(question, lambda: ask(question, default=default))

    def line(self, question: str) -> str:
        ask = super().line
        return self._answer(question, lambda: ask(question))

    def hidden(self, question: str, check: Callable[[str], str] = lambda _: "") -> Secret:
        ask = super().hidden
        return self._answer(question, lambda: ask(question, check))

    def passphrase(self, question: str) -> str:
        ask = super().passphrase
        return self._answer(question, lambda: ask(question))

    def _answer(self, question: str, ask: Callable[[], T]) -> T:
        known = self._answers[self._given : self._given + 1]
        if not known or known[0][0] != question:  # another one: what it depends on has changed meanwhile
            del self._answers[self._given :]
            self._answers.append((question, ask()))
        self._given += 1
        answer: T = self._answers[self._given - 1][1]
        return answer
