"""What is told to whoever was there when a run ended, or looks at it later."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from moat.cli.output import safe, say
from moat.errors import MoatError
from moat.paths import Home
from moat.runtime.records import RunRecord, read

_NOT_FOUND = 127  # of whatever was to start the command, or of a shell


def tell_results(home: Home, run: str, *, compare: bool = True) -> None:
    """Why the run may have failed; on a terminal also what it changed and was warned of.

    `run` is an id. Without `compare` the workspace is not looked at. Whatever goes wrong here is not the
    command's failure.
    """
    tell_failure(home, run)
    record = read(home, run)
    if record is None or not record.state.ended or not sys.stderr.isatty():
        return
    if record.exit_code == _NOT_FOUND:
        say("hint: `dependencies:` in agent.yaml bring programs that the sandbox lacks: `moat deps list`")
    with contextlib.suppress(MoatError, OSError, KeyboardInterrupt):
        if record.warned:
            from moat.cli.warnings import tell_warned

            tell_warned(home, record)
        told = [_requests(home, record)]
        if compare:
            from moat.cli.review import summary

            if numbers := summary(home, record):
                told.append(f"{numbers} — moat review {record.name}")
        told.append(_resume(record))
        if line := "; ".join(filter(None, told)):
            say(safe(line))


def tell_failure(home: Home, run: str) -> None:
    """Which credentials may be why the run failed, and the commands that help; nothing when it did not."""
    record = read(home, run)
    if record is None or not record.state.ended or not record.grants or record.exit_code == 0:
        return
    with contextlib.suppress(MoatError, OSError, KeyboardInterrupt):
        from moat.cli.refused import tell_refused

        tell_refused(home, record)


def _resume(record: RunRecord) -> str:
    """How a session at a terminal goes on, if it was one."""
    if record.agent is None or not record.tty:
        return ""
    from moat.runtime.agents.claude_sessions import conversation_of

    return f"`moat resume {record.name}` goes on" if conversation_of(Path.home(), record) else ""


def _requests(home: Home, record: RunRecord) -> str:
    """`12 requests, 1 denied, 3 with anthropic`."""
    from moat.runtime.tally import Tally, summary

    tally = Tally(home.run(record.id) / "network.jsonl")
    tally.update()
    return summary(tally)
