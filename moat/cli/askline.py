"""The question of a plain run, asked on a terminal whose keys go to nobody else.

Keys are read only while a question waits, and only in the foreground: what is typed for the shell stays its
own, and a job in the background is not stopped for reading. What was typed before is dropped, and no answer.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moat.cli.askbar import ascii_only, name, where
from moat.cli.output import say
from moat.cli.verdict import BY_WORD, Verdict

_LOOK = 0.2  # seconds
_SETTLED = 0.3  # seconds that a question has been shown before a line can answer it


class AskLine:
    def __init__(self, answer: Callable[[str, Verdict], None]) -> None:
        """answer: takes `host:port` and what is said about it. Called in a thread."""
        self._answer = answer
        self._asked = ""  # `host:port` of the question that is shown
        self._text = ""  # in which words
        self._since = 0.0
        self._reader: threading.Thread | None = None

    def show(self, waiting: Sequence[Mapping[str, Any]]) -> None:
        """The questions as they are now; the first is asked."""
        first = where(waiting[0]) if waiting else ""
        if first == self._asked:
            return
        if not first:
            sys.stderr.write("\n")
        self._asked, self._since = first, time.monotonic()
        if first:
            self._prompt(waiting[0])

    def _prompt(self, question: Mapping[str, Any]) -> None:
        with contextlib.suppress(termios.error):
            termios.tcflush(0, termios.TCIFLUSH)
        what = ascii_only(f"{question['method']} {name(question)}{question['path']}")
        self._text = f"moat: {what} waits. Allow this host for this run? [y/n/?] "
        sys.stderr.write(f"\a\r{self._text}")
        sys.stderr.flush()
        if self._reader is None or not self._reader.is_alive():
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()

    def _read(self) -> None:
        while asked := self._asked:
            if not select.select([0], [], [], _LOOK)[0] or not _in_foreground():
                continue
            line = os.read(0, 1024)
            if not line:
                return
            if asked != self._asked or time.monotonic() - self._since < _SETTLED:
                continue  # it was meant for another question, or for none
            verdict = BY_WORD.get(line.strip().lower())
            if verdict is None:
                say("y or n are for this run; once, 10m, always and never are answers, too")
                sys.stderr.write(self._text)
                sys.stderr.flush()
            elif wrong := verdict.note(asked):
                say(wrong)
            else:
                self._answer(asked, verdict)


def _in_foreground() -> bool:
    """A read by a job in the background would stop it."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False
