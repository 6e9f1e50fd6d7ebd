"""`moat exec [run] -- command…`: a further command in the sandbox of a run."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence

from moat.cli.display import size, write
from moat.cli.output import dumb, say
from moat.cli.parser import Parser
from moat.cli.run import split_command
from moat.cli.terminal import is_terminal, raw
from moat.errors import EXIT_START, MoatError, StartError, UsageError
from moat.paths import Home
from moat.runtime import control, known
from moat.runtime.control import Connection, Frame

_PIECE = 65536


def main(argv: Sequence[str]) -> int:
    flags, command = split_command(argv)
    parser = Parser(
        prog="moat exec",
        usage="moat exec [run] [options] -- command [argument...]",
        description="Run a further command in the sandbox of a run: same user, same files, same network. "
        "stdin, stdout, stderr and the exit status are the command's own. It ends with the run.",
    )
    parser.add_argument("run", nargs="?", help="name or id (default: the only one that runs)")
    parser.add_argument("-i", "--interactive", action="store_true", help="give the command a terminal")
    options = parser.parse_args(flags)
    if not command or not command[0]:
        raise UsageError("no command", hint="moat exec RUN -- ls")
    home = Home.from_environment()
    record = known.find(home, options.run) if options.run else known.one_alive(home)
    if record.state.ended or not record.socket:
        raise MoatError(f"{record.name} has ended ({record.state})", hint="`moat list` shows the runs")
    own = size() if options.interactive and is_terminal(0) else None
    wanted = {
        "argv": list(command),
        "size": (own.columns, own.rows) if own else None,
        "stdin": own is not None or not is_terminal(0),
        "dumb": dumb(),
    }
    with Connection(record.socket, "control") as run:
        return _Command(run, terminal=own is not None).carry_out(wanted)


class _Command:
    def __init__(self, run: Connection, *, terminal: bool) -> None:
        self._run = run
        self._terminal = terminal
        self._sending = threading.Lock()  # frames of two threads, and of signal handlers, stay whole

    def carry_out(self, wanted: Mapping[str, object]) -> int:
        """Returns the exit status. Raises StartError when the command could not be started."""
        self._send(control.pack_json(Frame.EXECUTE, wanted))
        with raw(0) if self._terminal else contextlib.nullcontext(), self._signals():
            if wanted["stdin"]:
                threading.Thread(target=self._copy_input, daemon=True).start()
            return self._copy_output()

    def _copy_output(self) -> int:
        while frame := self._receive():
            match frame:
                case (Frame.STDOUT, data):
                    write(1, data)
                case (Frame.STDERR, data):
                    write(2, data)
                case (Frame.NOTICE, data):
                    raise StartError(data.decode(errors="replace"))
                case (Frame.DONE, data):
                    return int(control.unpack_json(data)["exit_code"])
                case (Frame.EXIT, _):
                    break
        say("error: the run has ended, and the command with it")
        return EXIT_START

    def _receive(self) -> tuple[Frame, bytes] | None:
        with contextlib.suppress(ConnectionError):
            return self._run.receive()
        return None

    def _copy_input(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(0, _PIECE):
                self._send(control.pack(Frame.INPUT, data))
        self._send(control.pack(Frame.CLOSE_STDIN))

    def _send(self, frame: bytes) -> None:
        with contextlib.suppress(OSError), self._sending:
            self._run.send(frame)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and the like are the command's, a new size as well."""

        def passed_on(number: int, _frame: object) -> None:
            self._later(control.pack(Frame.SIGNAL, bytes([number])))

        def resized(_number: int, _frame: object) -> None:
            new = size()
            self._later(control.pack_size(new.columns, new.rows))

        handlers = {signal.SIGWINCH: resized} if self._terminal else {signal.SIGINT: passed_on}
        old = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _later(self, frame: bytes) -> None:
        """A handler must not wait for the lock that the code it interrupted may hold."""
        threading.Thread(target=self._send, args=(frame,), daemon=True).start()
