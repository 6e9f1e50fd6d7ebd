"""What is typed while a run's terminal is attached: to the program, but for the chord and what follows it."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable

from moat.chord import Chord
from moat.cli.display import Display
from moat.cli.keys import ANSWERS, Action, DetachKeys
from moat.cli.verdict import Decision
from moat.runtime.handle import RunHandle

_PIECE = 65536
_KEY_PAUSE = 0.05  # seconds after which the beginning of an escape sequence is taken for all of it
_MENU_PAUSE = 0.25  # seconds after the chord in which a key may follow: without one, the menu opens
_HINT = "d detaches, k stops the run, the same key again goes to the program"


class Keyboard:
    def __init__(
        self,
        handle: RunHandle,
        chord: Chord,
        display: Display,
        *,
        act: Callable[[Action | Decision], None],
        leaving: Callable[[], bool],
        read_only: bool,
    ) -> None:
        """act: does what was chosen. leaving: what is typed from here on is for somebody else."""
        self._handle = handle
        self._display = display
        self._chord = chord
        self._keys = DetachKeys(chord, asked=lambda: display.bar.asks)
        self._act = act
        self._leaving = leaving
        self._read_only = read_only
        self._hinted = False

    def copy(self, send: Callable[[bytes], None]) -> None:
        """Until stdin has ended or the user leaves. Raises what `send` raises."""
        while not self._leaving():
            if not self._typed():
                self._nothing_follows(send)
                continue
            data = read(0)
            if not data:
                return
            out, action = self._keys.feed(data)
            self._hinted = self._hinted and self._keys.called
            if out:
                send(out)
            if action in ANSWERS and not self._display.bar.visible:
                self._open_menu(send)  # it tells which host is meant; what the user has seen may not be ours
            elif action:
                self._act(action)

    def _typed(self) -> bool:
        """Wait for a key: as long as it takes, unless something depends on there being none."""
        if self._keys.holding:
            return _ready(_KEY_PAUSE)
        if self._keys.called and not self._hinted:
            return _ready(_MENU_PAUSE)
        return True

    def _nothing_follows(self, send: Callable[[bytes], None]) -> None:
        if self._keys.holding:
            send(self._keys.flush())
        elif self._display.plain:
            self._display.say(_HINT)
            self._hinted = True
        else:
            self._open_menu(send)

    def _open_menu(self, send: Callable[[bytes], None]) -> None:
        from moat.cli.session_menu import SessionMenu

        chord = self._keys.forget() or self._chord.byte
        with contextlib.suppress(EOFError):
            action = SessionMenu(self._handle, self._display, _read_within, read_only=self._read_only).run()
            if action is Action.CHORD:
                send(chord)
            elif action:
                self._act(action)


def read(fd: int) -> bytes:
    """The next bytes, also when somebody has made the descriptor non-blocking. b"" at the end."""
    while True:
        try:
            return os.read(fd, _PIECE)
        except BlockingIOError:
            select.select([fd], [], [])
        except OSError:
            return b""  # EIO: the terminal has hung up


def _read_within(seconds: float) -> bytes:
    """What is typed within that time, b"" when nothing is. Raises EOFError."""
    if not _ready(seconds):
        return b""
    if data := read(0):
        return data
    raise EOFError


def _ready(seconds: float) -> bool:
    return bool(select.select([0], [], [], seconds)[0])
