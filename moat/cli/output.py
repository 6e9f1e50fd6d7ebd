"""The one voice of the command line, and the one place where an error becomes an exit status.

stderr: `moat: error: …` then `moat: hint: …`, lower case, no full stop. stdout holds results only,
so pipes stay clean. Progress is shown on a terminal and dropped elsewhere.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import NoReturn

from moat import surroundings
from moat.errors import EXIT_INTERRUPTED, EXIT_START, MoatError, UsageError
from moat.importing import uncollected
from moat.regex import regex

# Control characters that JSON leaves as they are, what turns the direction of writing, what is no text.
_DRAWING = regex("[\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")
# The same, and those that JSON escapes, but for tab and line feed.
_CONTROLS = regex("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069]")
_OF_THE_USER = "moat.cli.proxy"  # what it starts is the user's program, in the user's environment
_LINE_EVERY = 1.0  # seconds between two lines of progress


def call(module: str, argv: Sequence[str], *, alone: bool = False, starts: bool = False) -> int:
    """Import `module`, run its `main(argv)` and turn what it raises into messages and a status.

    alone: this process is for nothing else. starts: it is to start a run.
    """
    fill_standard_streams()
    if module != _OF_THE_USER:
        surroundings.leave()
    try:
        if alone and starts and "--help" not in argv:
            status = _start(module, argv)
        else:
            with uncollected() if alone else contextlib.nullcontext():
                command = importlib.import_module(module)
            status = command.main(argv)
        sys.stdout.flush()
    except MoatError as error:
        return fail(error)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader left (`moat logs | head`): not our failure. Nothing may be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UnicodeEncodeError as error:
        return fail(_narrow(error))
    except OSError as error:
        return fail(_displaced() or _unprintable() or MoatError(reason(error, module), hint=_owner(error)))
    except RuntimeError as error:
        if not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        return EXIT_INTERRUPTED  # in the middle of making a class, up to Python 3.11
    return int(status or 0)


def reason(error: OSError, where: str = "") -> str:
    """`Read-only file system: /a/file`; `where` stands for a file that is not known."""
    about = error.filename or where
    return f"{error.strerror or error}{f': {about}' if about else ''}"


def _displaced() -> MoatError | None:
    """What is wrong where this process stands, if it is that."""
    try:
        os.getcwd()
    except OSError:
        return UsageError("the current directory has been removed", hint="`cd` to one that there is")
    return None


def _owner(error: OSError) -> str | None:
    """How to get back a state directory that was made as somebody else, by `sudo moat` most often."""
    from moat.paths import Home

    root = Home.from_environment().root
    if not isinstance(error, PermissionError) or not str(error.filename).startswith(str(root)):
        return None
    return f"if it is yours: sudo chown -R {os.geteuid()} {root}; else set MOAT_HOME to a directory of yours"


def _unprintable() -> MoatError | None:
    """What is wrong with stdout, if it is that. Nothing is to be flushed to it at exit."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return MoatError(f"the output cannot be written: {error.strerror}")
    return None


def _narrow(error: UnicodeEncodeError) -> MoatError:
    """A name of a file that this locale cannot say."""
    what = error.object[error.start : error.end]
    return MoatError(
        f"{what!r} cannot be written in the encoding of this locale, {error.encoding}",
        hint="LC_ALL=C.UTF-8 moat ...",
    )


def _start(module: str, argv: Sequence[str]) -> int:
    """With a supervisor that gets ready beside the command's own imports."""
    with contextlib.ExitStack() as stack:
        with uncollected():
            from moat.runtime.launch import standby

            ahead = stack.enter_context(standby())
            command = importlib.import_module(module)
        return int(command.main(argv, ahead=ahead) or 0)


def leave(status: int) -> NoReturn:
    """End at once. Python would take every module apart first, while the user waits for the prompt."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed, or nobody reads it
            stream.flush()
    os._exit(status)


def fill_standard_streams() -> None:
    """A stream that the caller has closed is nothing; no descriptor of ours may get its number."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - lives as long as the process
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - as above
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115 - as above
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does: no name may stop a listing


def fail(error: MoatError) -> int:
    """Print `error` and its hint; returns the exit status."""
    for line in str(error).splitlines() or ["failed"]:
        say(f"error: {line}")
    if error.hint:
        for line in error.hint.splitlines():
            say(f"hint: {line}")
    return error.exit_code or EXIT_START


def say(text: str) -> None:
    """One line to the user on stderr, with the program's name.

    Strangers have a say in many: the last lines of an image's build, of a service, of npm.
    """
    with contextlib.suppress(OSError, ValueError):  # who reads both in one pipe sees them in order
        sys.stdout.flush()
    sys.stderr.write(f"moat: {without_controls(text)}\n")
    sys.stderr.flush()


def git_warning(run: str, changes: Sequence[str]) -> list[str]:
    """What to tell about `RunRecord.git_changes`, line by line."""
    if not changes:
        return []
    return [
        f"warning: {run} changed what git on this machine obeys; look at it before you use git there:",
        *(f"warning:   {change}" for change in changes),
    ]


def emit(text: str) -> None:
    """One line of result on stdout."""
    sys.stdout.write(text + "\n")


def emit_json(value: object) -> None:
    emit(json_text(value, indent=2))


def json_text(value: object, *, indent: int | None = None) -> str:
    """JSON that reads well and draws on no terminal: what a sandbox named may be in it."""
    return _spelt_out(json.dumps(value, indent=indent, ensure_ascii=not _speaks_unicode()))


def emit_kept(line: bytes) -> None:
    """A line of JSON as it is kept, byte for byte; at a terminal in JSON's escapes where it would draw."""
    if sys.stdout.isatty():
        line = _spelt_out(line.decode("utf-8", "replace")).encode()
    sys.stdout.buffer.write(line + b"\n")


def _spelt_out(text: str) -> str:
    return _DRAWING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _speaks_unicode() -> bool:
    return (sys.stdout.encoding or "utf-8").lower().replace("_", "-").startswith("utf-")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns two spaces apart, the way `docker ps` and `kubectl get` print."""
    lines = [tuple(header), *map(tuple, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def clock(stamp: str) -> str:
    """Local time of day of an ISO stamp in UTC."""
    import datetime as dt  # for the two commands that show times

    try:
        return dt.datetime.fromisoformat(stamp).astimezone().strftime("%H:%M:%S")
    except ValueError:
        return "--:--:--"


def safe(text: str) -> str:
    """What a sandbox sent must not draw on the reader's terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def without_controls(text: str) -> str:
    """What draws on a terminal is spelt out; letters, and spaces of all kinds, stay as they are."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def fitted(text: str, columns: int) -> str:
    """In one row: what is left out is the middle, because an exchange's status stands at the end."""
    if len(text) <= columns:
        return text
    end = min(24, columns // 2)
    return f"{text[: max(0, columns - end - 1)]}…{text[len(text) - end :]}"


def _columns() -> int:
    try:
        return os.get_terminal_size(2).columns or 80
    except OSError:
        return 80


def dumb() -> bool:
    """The terminal takes text and nothing else, or does not say what it is."""
    return os.environ.get("TERM", "") in {"", "dumb", "unknown"}


class Progress:
    """What Moat is doing right now: one line on a terminal that the next one replaces.

    A dumb terminal gets a line of its own for what takes longer.
    """

    def __init__(self) -> None:
        self._terminal, self._dumb = sys.stderr.isatty(), dumb()
        self._told = time.monotonic()
        self._shown = False

    def show(self, text: str) -> None:
        if not self._terminal:
            return
        if not self._dumb:
            sys.stderr.write(f"\r\x1b[2K{fitted(without_controls(text), _columns() - 1)}")
            sys.stderr.flush()
            self._shown = True
        elif time.monotonic() - self._told > _LINE_EVERY:
            self._told = time.monotonic()
            say(text)

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
            self._shown = False
