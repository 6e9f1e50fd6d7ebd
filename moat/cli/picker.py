"""Choose one of a list at a terminal: arrows, numbers, letters that search; Enter takes, Esc steps back.

It is drawn below the prompt and erased again, so the scrollback keeps what was chosen and no menu. On a dumb
terminal the list is printed, and a number asked for.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from moat.cli.menu import Console, SteppedBackError
from moat.cli.output import dumb
from moat.dataclass import dataclass

if TYPE_CHECKING:
    from prompt_toolkit.application import Application
    from prompt_toolkit.formatted_text import StyleAndTextTuples
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output import Output

_KEYS = "up/down or a number · letters search · Enter takes · Esc back"
_MARGIN = 4  # lines of the screen that are not the list's


@dataclass(frozen=True, slots=True)
class Choice:
    key: str  # what `pick` returns
    title: str
    detail: str = ""  # shown behind it, searched as well


def pick(console: Console, question: str, choices: Sequence[Choice]) -> str | None:
    """The key of the choice that was taken, None when the user stepped back.

    Ctrl-C and Ctrl-D raise KeyboardInterrupt. There must be a terminal, and at least one choice.
    """
    if dumb():
        return _ask(console, question, choices)
    from prompt_toolkit.output.vt100 import Vt100_Output

    output = Vt100_Output.from_pty(console.stream, term=os.environ.get("TERM"))
    output.enable_cpr = False  # terminals that answer none cause a warning
    taken = _Picker(question, choices).application(output).run()
    if taken is not None:
        title = next(choice.title for choice in choices if choice.key == taken)
        console.print(f"{question} {title}")
    return taken


def _ask(console: Console, question: str, choices: Sequence[Choice]) -> str | None:
    width = max(len(choice.title) for choice in choices)
    for number, choice in enumerate(choices, 1):
        console.print(f"{number:3}. {choice.title:<{width}}  {choice.detail}".rstrip())
    numbers = [str(number) for number in range(len(choices) + 1)]
    try:
        answer = int(console.choose(f"{question} [1-{len(choices)}, 0 to go back]: ", numbers))
    except SteppedBackError:
        return None
    return choices[answer - 1].key if answer else None


class _Picker:
    def __init__(self, question: str, choices: Sequence[Choice]) -> None:
        self._question = question
        self._choices = choices
        self._width = max(len(choice.title) for choice in choices)
        self._sought = ""
        self._digits = ""  # of a number that is being typed
        self._at = 0

    def application(self, output: Output) -> Application[str | None]:
        from prompt_toolkit.application import Application
        from prompt_toolkit.layout import Layout, Window
        from prompt_toolkit.layout.controls import FormattedTextControl

        body = Window(FormattedTextControl(self._drawn, show_cursor=False), wrap_lines=False)
        return Application(
            layout=Layout(body),
            key_bindings=self._keys(),
            output=output,
            erase_when_done=True,
        )

    def _found(self) -> list[tuple[int, Choice]]:
        """Number and choice of everything that holds all the words that are sought."""
        words = self._sought.lower().split()
        numbered = list(enumerate(self._choices, 1))
        return [pair for pair in numbered if all(word in _text(pair[1]) for word in words)]

    def _drawn(self) -> StyleAndTextTuples:
        from prompt_toolkit.application import get_app

        size = get_app().output.get_size()
        rows = max(1, size.rows - _MARGIN)
        found = self._found()
        first = max(0, min(self._at - rows // 2, len(found) - rows))
        shown: StyleAndTextTuples = [("bold", f"{self._question} "), ("", f"{self._sought}\n")]
        for place, (number, choice) in enumerate(found[first : first + rows], first):
            line = f"{number:3}. {choice.title:<{self._width}}  {choice.detail}"[: size.columns - 1]
            shown.append(("reverse" if place == self._at else "", line + "\n"))
        if not found:
            shown.append(("", "  nothing like that\n"))
        return [*shown, ("fg:ansibrightblack", _KEYS[: size.columns - 1])]

    def _keys(self) -> KeyBindings:
        from prompt_toolkit.key_binding import KeyBindings

        keys = KeyBindings()

        @keys.add("up")
        def _up(_event: KeyPressEvent) -> None:
            self._move(-1)

        @keys.add("down")
        def _down(_event: KeyPressEvent) -> None:
            self._move(1)

        @keys.add("enter")
        def _take(event: KeyPressEvent) -> None:
            if found := self._found():
                event.app.exit(result=found[self._at][1].key)

        @keys.add("backspace")
        def _shorten(_event: KeyPressEvent) -> None:
            self._seek(self._sought[:-1])

        @keys.add("escape", eager=True)
        def _back(event: KeyPressEvent) -> None:
            if self._sought:
                self._seek("")
            else:
                event.app.exit(result=None)

        @keys.add("c-c")
        @keys.add("c-d")
        def _leave(event: KeyPressEvent) -> None:
            event.app.exit(exception=KeyboardInterrupt())

        @keys.add("<any>")
        def _typed(event: KeyPressEvent) -> None:
            self._typed(event.data)

        return keys

    def _typed(self, text: str) -> None:
        if text.isascii() and text.isdigit() and not self._sought:
            self._jump(text)
        elif text.isprintable() and (self._sought or text != "/"):  # with which others begin a search
            self._seek(self._sought + text)

    def _jump(self, digit: str) -> None:
        """To the number that is typed, digit by digit; what would lead beyond the list begins a new one."""
        for digits in (self._digits + digit, digit):
            if 1 <= int(digits) <= len(self._choices):
                self._digits, self._at = digits, int(digits) - 1
                return

    def _seek(self, text: str) -> None:
        self._sought, self._digits, self._at = text, "", 0

    def _move(self, step: int) -> None:
        self._digits = ""
        self._at = max(0, min(len(self._found()) - 1, self._at + step))


def _text(choice: Choice) -> str:
    return f"{choice.title} {choice.detail}".lower()
