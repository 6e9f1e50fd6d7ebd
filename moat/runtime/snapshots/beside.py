"""The process beside the supervisor that takes snapshots, or completes a restore (`watcher`)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE
from typing import Any

import anyio
from anyio.abc import Process

from moat import errors
from moat.runtime import codec
from moat.runtime.snapshots.plan import Plan

# As in `launch`: found also where Moat is not installed, and nothing is imported from a workspace.
_PROGRAM = "import sys; sys.path.append(sys.argv[1]); import moat.runtime.snapshots.watcher as w; w.main()"
_MOST = 1 << 20  # bytes of a line of the watcher


async def start(plan: Plan) -> Process:
    place = str(Path(errors.__file__).parent.parent)
    process = await anyio.open_process(
        [sys.executable, "-P", "-c", _PROGRAM, place], stdin=PIPE, stdout=PIPE, stderr=None, cwd="/"
    )
    assert process.stdin is not None
    await process.stdin.send(json.dumps(codec.encode(plan)).encode() + b"\n")
    return process


async def hear(process: Process, note: Callable[[dict[str, Any]], None]) -> None:
    """Pass on what it says until it ends."""
    from anyio.streams.buffered import BufferedByteReceiveStream

    assert process.stdout is not None
    lines = BufferedByteReceiveStream(process.stdout)
    while True:
        try:
            line = await lines.receive_until(b"\n", _MOST)
        except (anyio.IncompleteRead, anyio.ClosedResourceError, anyio.BrokenResourceError):
            return
        note(json.loads(line))
