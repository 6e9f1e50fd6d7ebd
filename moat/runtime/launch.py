"""Start a run in a supervisor of its own, which outlives this process.

    handle = start(request, home=home, progress=print)

The supervisor gets its request and the way to the vault as JSON on stdin, never in argv or env, and
answers with JSON lines: what it is doing, then that it is ready, or why it is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moat.paths import Home
from moat.runtime.request import RunRequest
from moat.runtime.sandbox import Progress


@dataclass(frozen=True, slots=True)
class RunHandle:
    """How to reach a live run: what `moat.cli.terminal.attach` takes."""

    id: str
    name: str
    socket: Path  # the run's control socket
    tty: bool
    stdin: bool  # somebody has to send stdin or close it


def start(
    request: RunRequest,
    *,
    home: Home | None = None,
    handoff: bytes = b"",
    progress: Progress = lambda _: None,
) -> RunHandle:
    """Start a supervisor for `request`; returns when the sandbox is ready.

    With `request.hold` the command itself starts at the first attach, so that no output is missed.
    `handoff` is `Vault.handoff()` of the vault that holds the grants. Raises StartError, GrantError,
    VaultError… exactly as the supervisor met them, with their hints.
    """
    raise NotImplementedError
