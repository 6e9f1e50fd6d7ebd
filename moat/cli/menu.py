"""Questions to the user at a terminal: a choice, yes or no, something hidden.

prompt-toolkit reads the answers; on a dumb terminal the plain ones of the system do. Ctrl-C and Ctrl-D
raise KeyboardInterrupt, Esc (on a dumb terminal: Esc and Enter) a kind of it, SteppedBackError. Without a
terminal nothing is ever asked: `Console.terminal` says so.
"""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from moat.cli.output import dumb
from moat.errors import UsageError
from moat.grants import Secret
from moat.vault.key import NewKey

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

NO_PROMPT = "MOAT_NO_PROMPT"  # set to anything: nothing is ever asked, as without a terminal
_TRIES = 3
# A terminal without bracketed paste sends pasted line ends as Enter: it counts when nothing follows.
_SETTLE = 0.2  # seconds
_ESCAPE = 0.15  # seconds after which an Esc is a key, and not the beginning of an arrow


class SteppedBackError(KeyboardInterrupt):
    """The user wants to go back from a question. Where nothing is before it, that leaves like Ctrl-C."""


class Console:
    """Where a wizard talks to the user: stdout, or stderr when stdout is kept for `--json`."""

    def __init__(self, *, json: bool = False) -> None:
        self.stream: TextIO = sys.stderr if json else sys.stdout
        self.terminal = sys.stdin.isatty() and self.stream.isatty() and not os.environ.get(NO_PROMPT)

    def print(self, text: str = "") -> None:
        self.stream.write(text + "\n")
        self.stream.flush()

    def choose(self, question: str, answers: Sequence[str]) -> str:
        """One of `answers`. An empty or another answer asks again. Raises UsageError after three."""
        for _ in range(_TRIES):
            answer = self._ask(question).strip()
            if answer in answers:
                return answer
            self.print(f"Please enter {' or '.join(filter(None, answers))}.")
        raise UsageError("no choice was made", hint="run the command again")

    def confirm(self, question: str, *, default: bool) -> bool:
        """Yes or no; Enter takes the default. Raises UsageError after three other answers."""
        known = {"": default, "y": True, "yes": True, "n": False, "no": False}
        for _ in range(_TRIES):
            answer = self._ask(f"{question} [{'Y/n' if default else 'y/N'}]: ").strip().lower()
            if answer in known:
                return known[answer]
            self.print("Please enter y or n.")
        raise UsageError("no answer was given", hint="run the command again")

    def line(self, question: str) -> str:
        """A line as typed, without surrounding white space; perhaps empty."""
        return self._ask(question).strip()

    def hidden(self, question: str, check: Callable[[str], str] = lambda _: "") -> Secret:
        """A secret, not shown; all white space is dropped, since a paste may be wrapped over lines.

        check: what is wrong with an answer, or "". Raises UsageError after three wrong answers.
        """
        problem = ""
        for _ in range(_TRIES):
            answer = "".join(self._ask(question, hidden=True, pasted=True).split())
            problem = check(answer) if answer else "nothing was entered"
            if not problem:
                return Secret(answer)
            self.print(f"That does not work: {problem}.")
        raise UsageError(problem, hint="run the command again")

    def passphrase(self, question: str) -> str:
        """A passphrase as typed. Raises UsageError when it stays empty."""
        for _ in range(_TRIES):
            answer = self._ask(question, hidden=True)
            if answer:
                return answer
            self.print("Please enter a passphrase.")
        raise UsageError("no passphrase was entered", hint="run the command again")

    def _ask(self, question: str, *, hidden: bool = False, pasted: bool = False) -> str:
        try:
            if dumb():
                return self._plain(question, hidden=hidden)
            return self._prompt(question, hidden=hidden, pasted=pasted)
        except SteppedBackError:
            self.print()
            raise
        except (EOFError, KeyboardInterrupt):
            self.print()
            raise KeyboardInterrupt from None

    def _plain(self, question: str, *, hidden: bool) -> str:
        if hidden:
            line = getpass.getpass(question, self.stream)
        else:
            self.stream.write(question)
            self.stream.flush()
            line = sys.stdin.readline()
            if not line:
                raise EOFError
        if line.strip() == "\x1b":
            raise SteppedBackError
        return line

    def _prompt(self, question: str, *, hidden: bool, pasted: bool) -> str:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import DummyHistory
        from prompt_toolkit.output.vt100 import Vt100_Output

        output = Vt100_Output.from_pty(self.stream, term=os.environ.get("TERM"))
        # One line needs no cursor position report, and terminals that answer none cause a warning.
        output.enable_cpr = False
        session: PromptSession[str] = PromptSession(
            [("fg:ansidefault", question)],  # a colour, or the space at its end would be left out
            is_password=hidden,
            output=output,
            history=DummyHistory(),
            key_bindings=_keys(pasted=pasted),
            enable_suspend=False,
        )
        session.app.ttimeoutlen = _ESCAPE
        return session.prompt()


class AskPassphrase:
    """Asks for the passphrase of the sealed credentials. For `open_vault(passphrase=…)`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._asked = False

    @classmethod
    def where_possible(cls, console: Console | None = None) -> AskPassphrase | None:
        """At `console`, or else on stderr, or on stdout; None without a terminal."""
        consoles = (console, Console(json=True), Console())
        return next((cls(able) for able in consoles if able is not None and able.terminal), None)

    def __call__(self) -> str:
        if self._asked:
            self._console.print("That is not the passphrase.")
        self._asked = True
        return self._console.passphrase("Passphrase of the sealed credentials: ")


def choose_key(console: Console, default_file: Path) -> NewKey:
    """How new sealed files shall be protected."""
    console.print("Credentials will be stored in sealed files. Protect them with:")
    console.print()
    console.print("  1. A passphrase (recommended)")
    console.print("     Asked for by commands that need a credential, or in MOAT_PASSPHRASE.")
    console.print()
    console.print("  2. A key file")
    console.print("     Who can read it can read the credentials. It will be:")
    console.print(f"     {default_file}")
    console.print()
    if console.choose("Enter choice [1 or 2]: ", ("1", "2")) == "2":
        return NewKey(key_file=default_file)
    for _ in range(_TRIES):
        first = console.passphrase("New passphrase: ")
        if console.passphrase("The same again: ") == first:
            return NewKey(passphrase=Secret(first))
        console.print("They differ.")
    raise UsageError("the passphrases differ", hint="run the command again")


def _keys(*, pasted: bool) -> KeyBindings:
    """Esc steps back; for what is `pasted`, Enter is patient."""
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()

    @bindings.add("escape", eager=True)
    def back(event: KeyPressEvent) -> None:
        event.app.exit(exception=SteppedBackError())

    if pasted:
        bindings.add("enter")(_patient_enter)
    return bindings


def _patient_enter(event: KeyPressEvent) -> None:
    """Accepts once nothing has followed for a moment; what follows belongs to the same paste."""
    import asyncio

    buffer = event.current_buffer
    seen = buffer.text

    async def settle() -> None:
        await asyncio.sleep(_SETTLE)
        if buffer.text == seen and not event.app.is_done:
            event.app.exit(result=seen)

    event.app.create_background_task(settle())
