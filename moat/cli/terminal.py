"""The user's side of a run: their terminal or pipes joined to a supervisor's control socket.

The main thread copies output and answers signals; a thread copies stdin on a connection of its own, so
that a command which does not read holds up nothing but its own input. Whatever ends this, the terminal
is brought back to the state it was in.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

from moat.chord import DEFAULT, Chord
from moat.cli.askbar import ascii_only, name
from moat.cli.askline import AskLine
from moat.cli.display import Display, size, write
from moat.cli.keyboard import Keyboard, read
from moat.cli.keys import ANSWERS, Action
from moat.cli.output import git_warning, safe, say
from moat.cli.verdict import BY_KEY, Decision, Verdict
from moat.errors import EXIT_INTERRUPTED, EXIT_START, StartError
from moat.paths import Home
from moat.regex import regex
from moat.runtime import control, records
from moat.runtime.control import Connection, Frame
from moat.runtime.handle import RunHandle
from moat.runtime.records import RunRecord, State

_TWICE = 0.5  # seconds in which a second Ctrl-C means "stop" and not "detach"
_STUBBORN = 2.0  # seconds after which a command that Ctrl-C did not end is worth a word
_GRACE = 10.0
_CTRL_C = regex(rb"\x03|\x1b\[99;5(?::1)?u")  # as a byte, and in the kitty keyboard protocol
_EXIT_PIPE = 128 + signal.SIGPIPE


class _Left(BaseException):
    """The user left the run, or was sent away; it goes on. Raised from signal handlers: not an Exception."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


def attach(
    handle: RunHandle,
    *,
    lead: bool = False,
    read_only: bool = False,
    steal: bool = False,
    chord: Chord = DEFAULT,
) -> int:
    """Join this process's stdin, stdout and stderr to the run until it ends or the user detaches.

    `lead`: this command started the run, so its pipes and signals are the run's own: nothing of the
    output is lost, a slow reader slows the command, Ctrl-C goes to it. `read_only`: nothing is sent to the
    command, and Ctrl-C detaches. `steal`: everybody else who is attached is sent away. `chord`: the key
    that opens the menu. Returns the command's exit status, or 0 after a detach.
    """
    return _Attachment(handle, chord, lead=lead, read_only=read_only, steal=steal).run()


class _Attachment:
    def __init__(self, handle: RunHandle, chord: Chord, *, lead: bool, read_only: bool, steal: bool) -> None:
        self._handle = handle
        self._lead = lead
        self._read_only = read_only
        self._chord = chord
        self._display = Display(
            terminal=handle.tty and is_terminal(1),
            ask_for_screen=lambda: self._send(control.pack(Frame.REDRAW)),
            repaint=lambda: self._send(control.pack(Frame.REPAINT)),
            chord=chord.name if chord.byte and not read_only else "",
        )
        self._asked: set[str] = set()  # hosts that a line has told of
        self._line = AskLine(self._answer) if self._has_idle_keys else None
        self._interrupts = 0
        self._leaving = False
        own = size()
        self._output = Connection(  # the command starts
            handle.socket,
            "view",
            lead=lead,
            size=(own.columns, own.rows) if self._display.terminal else None,
            read_only=read_only,
            steal=steal,
        )

    def run(self) -> int:
        with self._output, _signals(self._handlers()):
            try:
                record = self._joined()
                self._repeat()
                return self._ended(record)
            except _Left as left:
                self._display.left()
                self._repeat()
                if left.reason:
                    say(left.reason)
                say(f"detached from {self._handle.name}; `moat attach {self._handle.name}` comes back")
                return 0
            except BrokenPipeError:
                return self._reader_left()

    def _joined(self) -> RunRecord | None:
        """As `_copy_output`, with the terminal lent to the program."""
        with raw(0) if self._handle.tty and is_terminal(0) else contextlib.nullcontext():
            try:
                self._display.open()
                if self._takes_input:
                    threading.Thread(target=self._copy_input, daemon=True).start()
                return self._copy_output()
            finally:
                self._display.close()

    def _repeat(self) -> None:
        """What was told in the last row is gone from there."""
        for text, when in self._display.notes.items():
            self._display.end_line()
            say(f"{text} (told at {when:%H:%M})")

    # --- output ----------------------------------------------------------------------------------

    def _copy_output(self) -> RunRecord | None:
        """Until the run has ended. None: the connection was lost."""
        while True:
            try:
                frame = self._output.receive()
            except ConnectionError:
                return None
            match frame:
                case None:
                    return None
                case (Frame.STDOUT, data):
                    self._display.output(data)
                case (Frame.STDERR, data):
                    write(2, data)
                case (Frame.SCREEN, data):
                    self._display.screen(data)
                case (Frame.LEFT, data):
                    raise _Left(data.decode(errors="replace"))
                case (Frame.ASKED, data):
                    self._ask(control.unpack_json(data)["waiting"])
                case (Frame.NOTICE, data):
                    self._say(data.decode(errors="replace"))
                case (Frame.EXIT, data):
                    return RunRecord.from_json(control.unpack_json(data))

    def _outcome(self) -> RunRecord | None:
        """How the run ended, whose supervisor does not wait long for a terminal that stands still."""
        record = records.read(Home.from_environment(), self._handle.id)
        if record is None or record.exit_code is None:
            return None
        return record if record.state.ended or self._is_owned() else None

    def _is_owned(self) -> bool:
        return records.owned(Home.from_environment().run(self._handle.id))

    def _ended(self, record: RunRecord | None) -> int:
        record = record or self._outcome()
        if record is None:
            self._tell_lost()
            return EXIT_START
        if record.log_error:
            self._say(f"the log of this run has a hole: {record.log_error}")
        for line in record.services_ended:
            self._say(f"warning: the service {line}")
        for line in git_warning(record.name, record.git_changes):
            self._say(line)
        if self._lead and self._interrupts > 1:
            return EXIT_INTERRUPTED  # the status tells of our own signals
        if record.exit_code is not None:
            return record.exit_code
        if record.state is State.FAILED:
            self._say(f"error: {record.error}")
        return EXIT_START

    def _tell_lost(self) -> None:
        run = self._handle
        if self._is_owned():
            self._say(f"error: lost the connection to {run.name}")
            self._say("hint: `moat list` shows whether it still runs, `moat attach` comes back")
        else:
            self._say(f"error: lost the connection to {run.name}: its supervisor was killed")
            self._say(f"hint: `moat logs {run.id}` shows what it printed")

    def _reader_left(self) -> int:
        """Stdout was closed (`… | head`): the command has nobody left to write to, as after SIGPIPE."""
        if self._lead and not self._handle.tty:
            self._stop()
            # Closed with output in it, the connection would break, and the order be lost with it.
            with contextlib.suppress(OSError, _Left):
                self._output.socket.settimeout(_GRACE)
                while (frame := self._output.receive()) is not None and frame[0] is not Frame.EXIT:
                    pass
        _silence_stdout()
        return _EXIT_PIPE

    def _say(self, text: str) -> None:
        for line in map(safe, text.splitlines()):  # names and log lines may be a sandbox's
            if self._handle.tty and not self._display.closed:
                self._display.say(line)
            elif line not in self._display.notes:
                self._display.end_line()
                say(line)

    def _ask(self, waiting: Sequence[Mapping[str, Any]]) -> None:
        """Show what waits for the user: in the last row, or in lines between the output."""
        if self._display.ask(waiting):
            return
        if self._line:
            self._line.show(waiting)
            return
        run = self._handle.name
        for question in waiting:
            if (host := name(question)) not in self._asked:
                what = ascii_only(f"{question['method']} {host}{question['path']}")
                self._say(f"{what} waits for you: `moat approve {run} {host}`, or `moat deny {run} {host}`")
        self._asked = {name(question) for question in waiting}

    def _answer(self, host: str, verdict: Verdict) -> None:
        from moat.runtime.questions import Answer, exactly

        answer = Answer(
            pattern=exactly(host),
            allow=verdict.allow,
            scope=verdict.scope,
            seconds=verdict.seconds,
            by="key",
        )
        self._send(control.pack_json(Frame.ANSWER, answer.to_json()))

    # --- input -----------------------------------------------------------------------------------

    @property
    def _has_idle_keys(self) -> bool:
        """There is a person at a terminal whose keys go nowhere: the command of a plain run has no stdin."""
        plain = not self._handle.tty and not self._handle.stdin
        return plain and not self._read_only and is_terminal(0) and is_terminal(2)

    @property
    def _takes_input(self) -> bool:
        keys = self._handle.tty and is_terminal(0)
        return keys if self._read_only else self._handle.tty or self._handle.stdin

    @property
    def _ends_input(self) -> bool:
        """The end of this stdin is the end of the command's.

        It is not when somebody leaves a terminal that others share, or watches with `</dev/null`.
        """
        return not self._handle.tty and (self._lead or is_terminal(0))

    def _copy_input(self) -> None:
        """Runs in a thread until stdin ends; the process does not wait for it.

        That the run cannot be reached any more is told by who copies its output.
        """
        with contextlib.suppress(OSError, StartError):
            if self._read_only:
                self._keyboard().copy(lambda keys: self._leave_now() if _CTRL_C.search(keys) else None)
                return
            with Connection(self._handle.socket, "input") as run:
                if self._handle.tty and is_terminal(0):
                    self._keyboard().copy(lambda keys: run.send(control.pack(Frame.INPUT, keys)))
                else:
                    while data := read(0):
                        run.send(control.pack(Frame.INPUT, data))
                if self._ends_input:
                    run.send(control.pack(Frame.CLOSE_STDIN))

    def _keyboard(self) -> Keyboard:
        return Keyboard(
            self._handle,
            self._chord,
            self._display,
            act=self._act,
            leaving=lambda: self._leaving,
            read_only=self._read_only,
        )

    def _leave_now(self) -> None:
        self._leaving = True
        main = threading.main_thread().ident
        signal.pthread_kill(main or 0, signal.SIGTERM)  # it leaves, also out of a blocked write

    def _act(self, action: Action | Decision) -> None:
        if action is Action.DETACH:
            self._leave_now()
        elif self._read_only:
            return
        elif action is Action.STOP:
            self._stop()
        elif isinstance(action, Decision):
            self._answer(action.host, action.verdict)
        elif action in ANSWERS and (host := self._display.bar.chosen) is not None:
            self._answer(host, BY_KEY[action.value.decode()])

    # --- signals ---------------------------------------------------------------------------------

    def _handlers(self) -> dict[int, Callable[[], None]]:
        handlers: dict[int, Callable[[], None]] = {signal.SIGTERM: _leave, signal.SIGHUP: _leave}
        if self._handle.tty:  # Ctrl-C is a key of the program's: a signal comes from somebody else
            handlers |= {signal.SIGINT: _leave}
            return handlers | {signal.SIGWINCH: self._resize, signal.SIGCONT: self._continue}
        return handlers | {signal.SIGINT: self._interrupt, signal.SIGALRM: self._waited}

    def _resize(self) -> None:
        if is_terminal(1):
            new = size()
            self._send(control.pack_size(new.columns, new.rows))

    def _continue(self) -> None:
        if is_terminal(0):
            tty.setraw(0, termios.TCSADRAIN)
        self._resize()

    def _interrupt(self) -> None:
        """Ctrl-C: to the command first, then it stops the run; who merely watches leaves by it.

        Two at once stop a run that is watched.
        """
        self._interrupts += 1
        if self._lead and self._interrupts == 1:
            self._send(control.pack(Frame.SIGNAL, bytes([signal.SIGINT])))
            signal.setitimer(signal.ITIMER_REAL, _STUBBORN)
        elif self._lead or self._interrupts == 2:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._stop()
        else:
            signal.setitimer(signal.ITIMER_REAL, _TWICE)

    def _waited(self) -> None:
        """The time after a first Ctrl-C is over."""
        if not self._lead:
            _leave()
        self._say(f"{self._handle.name} has not ended yet; Ctrl-C again stops it")

    def _stop(self) -> None:
        self._send(control.pack(Frame.STOP, struct.pack(">d", _GRACE)))

    def _send(self, frame: bytes) -> None:
        with contextlib.suppress(OSError):  # the run is gone; the main thread is told so by receive()
            self._output.send(frame)


def _leave() -> None:
    raise _Left


@contextlib.contextmanager
def _signals(handlers: dict[int, Callable[[], None]]) -> Iterator[None]:
    """Install handlers, and put the old ones back."""

    def call(number: int, frame: FrameType | None) -> None:
        del frame
        handlers[number]()

    old = {number: signal.signal(number, call) for number in handlers}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def raw(fd: int) -> Iterator[None]:
    """Raw mode: every key goes to the program in the sandbox."""
    before = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSADRAIN)  # what was typed ahead is kept
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


def is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def _silence_stdout() -> None:
    """Nothing may be flushed to a pipe without a reader at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
