"""Start a run in a supervisor of its own, which outlives this process.

    handle = start(request, home=home, progress=print)

The supervisor is a new interpreter, or a fork of this process that was made ahead. It gets its request and
the way to the vault as JSON on stdin, never in argv or env. It answers with JSON lines: who it is, what it is
doing, then that it is ready, or why it is not.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from moat import errors, surroundings
from moat.errors import MoatError, StartError
from moat.importing import uncollected
from moat.paths import Home
from moat.runtime import forking
from moat.runtime.forking import Fork
from moat.runtime.handle import RunHandle
from moat.runtime.request import RunRequest
from moat.runtime.sandbox import Progress

# The directory of this very moat comes last on the path: found also where it is not installed, and
# nothing of it hides a module of the standard library.
_PROGRAM = "import sys; sys.path.append(sys.argv[1]); import moat.runtime.supervisor as s; s.main()"
_LEAST_FILES = 256  # twenty for itself, and two for each connection


def _silent(_: str) -> None:
    """Nobody wants to know what is being done."""


@contextlib.contextmanager
def standby() -> Iterator[Fork | None]:
    """A supervisor for `start`, which gets ready while the caller finds out what to ask of it.

    For programs that end when their run does, such as the command line. None: this process must not be
    forked. Without a request it ends when the block does.
    """
    if not forking.alone():
        yield None
        return
    with forking.forked(_stand_by) as ahead:
        yield ahead


def _stand_by() -> None:
    with uncollected():
        from moat.runtime import supervisor  # a heavy import: here, beside the command's own

    supervisor.obey()


def start(
    request: RunRequest,
    *,
    home: Home | None = None,
    handoff: bytes = b"",
    progress: Progress = _silent,
    ahead: Fork | None = None,
) -> RunHandle:
    """Start a supervisor for `request`, or take the one that stands by; returns when the sandbox is ready.

    With `request.hold` the command itself starts at the first attach, so that no output is missed.
    `handoff` is `Vault.handoff()` of the vault that holds the grants. Raises StartError, GrantError,
    VaultError… exactly as the supervisor met them, with their hints. When this call is interrupted
    (KeyboardInterrupt), the run is stopped.
    """
    _check_limits()
    home = home or Home.from_environment()
    message = _message(home, request, handoff)
    with _supervisor(request, ahead) as (orders, answers, complaints):
        said = _Answers(answers)
        try:
            with contextlib.suppress(BrokenPipeError), orders:  # it died; what it had to say follows
                orders.write(message)
            handle = _follow(said, request, progress)
        except KeyboardInterrupt:
            said.cancel()
            raise
        if handle is None:
            raise _died(complaints.read())
    return handle


def _check_limits() -> None:
    """With less a run would begin, and fail somewhere in its midst. Raises StartError."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if allowed != resource.RLIM_INFINITY and allowed < _LEAST_FILES:
        raise StartError("a run needs more open files than it may have here", hint="ulimit -n 4096")


def _message(home: Home, request: RunRequest, handoff: bytes) -> bytes:
    return json.dumps(
        {
            "home": str(home.root),
            "request": request.to_json(),
            "handoff": base64.b64encode(handoff).decode("ascii"),
            # As it is by now: options such as `--profile` are kept there.
            "environ": {**os.environ, **surroundings.outside(os.environ, *_agents_own(request))},
        }
    ).encode()


def _agents_own(request: RunRequest) -> list[Path]:
    """What the agent can write of the host's."""
    return [request.workspace, *(mount.source for mount in request.mounts if not mount.read_only)]


@contextlib.contextmanager
def _supervisor(request: RunRequest, ahead: Fork | None) -> Iterator[Fork]:
    places = _agents_own(request)
    if ahead and not forking.imports_from(*places):
        yield ahead
        return
    # -P and cwd: nothing is ever imported from a workspace, which an agent can write.
    with subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM, str(Path(errors.__file__).parent.parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        env={**os.environ, **surroundings.outside(os.environ, *places)},
        start_new_session=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        yield Fork(process.stdin, process.stdout, process.stderr)


def _follow(answers: _Answers, request: RunRequest, progress: Progress) -> RunHandle | None:
    """Read what the supervisor says until it is ready. None: it said nothing and died."""
    for answer in answers.read():
        match answer:
            case {"progress": str(text)}:
                progress(text)
            case {"error": {"kind": str(kind), "message": str(text), "hint": hint}}:
                raise _error(kind, text, hint)
            case {"ready": {"id": str(run_id), "name": str(name), "socket": str(path)}}:
                return RunHandle(run_id, name, Path(path), request.tty is not None, request.stdin)
    return None


class _Answers:
    """What a supervisor says, line by line."""

    def __init__(self, lines: IO[bytes]) -> None:
        self._lines = lines
        self._pid = 0  # of the supervisor, which tells it first

    def read(self) -> Iterator[Mapping[str, Any]]:
        for line in self._lines:
            value = self._value(line)
            if value:
                yield value

    def cancel(self) -> None:
        """Stop the supervisor, which may not have said yet who it is, and wait until it has cleared up.

        It has its request by now: without a word it would go on, and start the command when nobody comes.
        """
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would leave it half done
        try:
            if not self._pid:
                self._value(self._lines.readline())
            if self._pid:
                with contextlib.suppress(ProcessLookupError):  # it failed, and has ended
                    os.kill(self._pid, signal.SIGTERM)
        finally:
            signal.signal(signal.SIGINT, before)
        for _ in self._lines:
            pass

    def _value(self, line: bytes) -> Mapping[str, Any] | None:
        """What it says, but for who it is."""
        match json.loads(line or b"null"):
            case {"pid": int(pid)}:
                self._pid = pid
            case dict(value):
                return value
        return None


def _error(kind: str, text: str, hint: str | None) -> MoatError:
    found = getattr(errors, kind, StartError)
    if found is errors.ConfigError:
        return errors.ConfigError(text.splitlines(), hint=hint)
    if isinstance(found, type) and issubclass(found, MoatError):
        return found(text, hint=hint)
    return StartError(text, hint=hint)


def _died(complaint: bytes) -> StartError:
    last = complaint.decode(errors="replace").strip().splitlines()[-1:]
    return StartError(": ".join(["the supervisor of the run died", *last]), hint="`moat doctor`")
