"""Getting a credential from where it is kept. A place that fails is an error, never an empty credential.

No shell is involved: the words of a command are the program and its arguments. What a program says when it
fails is passed on for `op` and `aws` alone; one of the user's could quote the secret.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import anyio
from anyio.abc import ByteReceiveStream, Process

from moat.errors import GrantError
from moat.grants import Secret
from moat.vault.key import without_passphrase
from moat.vault.origin import Origin

DEADLINE = 60.0  # seconds; a password manager may have to be unlocked
LIMIT = 64 * 1024  # bytes; no credential is longer
_SHAPE = re.compile(rb"[!-~]+")  # what a header can carry
_SAID = 300  # characters of an error


async def resolve(origin: Origin) -> Secret:
    """The credential as it is now. Raises GrantError, within `DEADLINE`."""
    if origin.kind == "env":
        given = os.environ.get(origin.words[0], "").encode()
        if not given:
            raise GrantError(
                f"the variable {origin.words[0]} is not set", hint="set it in the shell that starts the run"
            )
    else:
        given = await _output(origin)
    return Secret(_checked(given, origin))


def _checked(given: bytes, origin: Origin) -> str:
    text = given.strip(b"\r\n \t")
    if not text:
        raise GrantError(f"{origin.shown} gave no credential: it is empty", hint=_try(origin))
    if not _SHAPE.fullmatch(text):
        raise GrantError(
            f"{origin.shown} gave more than one line, or characters that no credential has", hint=_try(origin)
        )
    return text.decode("ascii")


async def _output(origin: Origin) -> bytes:
    words = origin.words
    program = shutil.which(words[0])
    if program is None:
        raise GrantError(f"{words[0]} is not installed, or not on PATH", hint=_try(origin))
    try:
        with anyio.fail_after(DEADLINE):
            status, given, said = await _run([program, *words[1:]])
    except TimeoutError:
        raise GrantError(
            f"{origin.shown} did not answer within {DEADLINE:.0f} s", hint=_try(origin)
        ) from None
    except OSError as error:
        raise GrantError(f"{origin.shown} cannot be run: {error.strerror}", hint=_try(origin)) from None
    if len(given) > LIMIT:
        raise GrantError(f"{origin.shown} gave more than {LIMIT} bytes", hint=_try(origin))
    if status != 0:
        quotes = any(
            word.decode("utf-8", "replace") in said for word in given.split()
        )  # what it gave all the same
        detail = f": {said}" if said and origin.kind != "command" and not quotes else ""
        raise GrantError(f"{origin.shown} failed with status {status}{detail}", hint=_try(origin))
    return given


async def _run(words: list[str]) -> tuple[int, bytes, str]:
    """(status, output up to a byte more than the limit, last line of errors). Nothing of it survives us."""
    environment = without_passphrase()
    process = await anyio.open_process(
        words, stdin=subprocess.DEVNULL, env=environment, cwd=Path.home(), start_new_session=True
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        given, said = bytearray(), bytearray()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_collect, process.stderr, said, _do_nothing)
            await _collect(process.stdout, given, lambda: _kill(process))
        status = await process.wait()
    finally:
        _kill(process)
        with anyio.CancelScope(shield=True):
            await process.aclose()
    lines = said.decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return status, bytes(given), "".join(c for c in last if c.isprintable())[:_SAID]


async def _collect(stream: ByteReceiveStream, into: bytearray, when_full: Callable[[], None]) -> None:
    """Read until the end; keep a byte more than the limit."""
    async for data in stream:
        into += data[: LIMIT + 1 - len(into)]
        if len(into) > LIMIT:
            when_full()


def _do_nothing() -> None:
    """What is too long is dropped."""


def _kill(process: Process) -> None:
    """The whole group: what a wrapper left behind still holds its pipes."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _try(origin: Origin) -> str:
    if origin.kind == "command":
        return "try the command in a shell; no shell is used for it here (`sh -c '…'` is one)"
    return f"try it: {' '.join(origin.words)}"
