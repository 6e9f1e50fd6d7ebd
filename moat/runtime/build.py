"""Building an image: with BuildKit where the engine has it, else with its classic builder.

Everything that a build needs lies in its context and the base image is here already, so that BuildKit
never has to ask a client back, which would take a session of its own protocol.
"""

from __future__ import annotations

import base64
import collections
import os
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from moat.errors import StartError
from moat.runtime.buildkit import Step, Text, Trace
from moat.runtime.sandbox import Progress

if TYPE_CHECKING:
    from moat.runtime.engine import Engine

_TAIL = 15  # lines of a failed step that are shown
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # the classic builder paints stderr red
_STEP = re.compile(r"(?:Step |\[(?:[\w-]+ )? *)(\d+/\d+)(?:\] | : )(.*)", re.DOTALL)
_NOISE = (" ---> ", "Removing intermediate container")
_STATUS = re.compile(r"(?:non-zero code|exit code): (\d+)")


class _UnusableError(Exception):
    """The engine's BuildKit cannot do it."""


async def build(
    engine: Engine,
    context: IO[bytes],
    *,
    tag: str,
    arguments: Mapping[str, str],
    fresh: bool,
    progress: Progress,
) -> None:
    """Build the tar `context` as `tag`. Raises StartError with the last lines of the step that failed."""
    options: dict[str, Any] = {"tag": tag, "arguments": arguments, "fresh": fresh}
    if os.environ.get("DOCKER_BUILDKIT") != "0":
        try:
            await _follow(engine.build(context, buildkit=True, **options), progress)
            return
        except _UnusableError:
            context.seek(0)
    await _follow(engine.build(context, buildkit=False, **options), progress)


async def _follow(messages: AsyncGenerator[dict[str, Any], None], progress: Progress) -> None:
    from moat.runtime.engine_http import EngineError

    log = _Log(progress)
    trace = Trace()
    try:
        async with aclosing(messages):  # a failure leaves the rest of the answer unread
            async for message in messages:
                if message.get("id") == "moby.buildkit.trace":
                    for event in trace.read(base64.b64decode(str(message.get("aux")))):
                        log.event(event)
                elif "error" in message:
                    raise log.failure(str(message["error"]))
                else:
                    log.text(str(message.get("stream", "")))
    except EngineError as error:
        if not log.step and error.status in {400, 404, 501}:
            raise _UnusableError from None
        raise log.failure(str(error)) from None


@dataclass(slots=True)
class _Log:
    """The step that is being made, and its last lines."""

    progress: Progress
    step: str = ""
    _tail: collections.deque[str] = field(default_factory=lambda: collections.deque(maxlen=_TAIL))
    _rest: str = ""

    def event(self, event: Step | Text) -> None:
        if isinstance(event, Text):
            self.text(event.text)
        elif event.error:
            self.step = _described(event.name) or self.step
        else:
            self._begin(event.name)

    def text(self, text: str) -> None:
        if self._rest and text.startswith(("Step ", *_NOISE)):
            text = f"\n{text}"  # the builder's own words, after output that ended without a newline
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._line(_COLOUR.sub("", line).rstrip("\r"))

    def _line(self, line: str) -> None:
        if line.startswith("Step "):
            self._begin(line)
        elif line and not line.startswith(_NOISE):
            self._tail.append(line)

    def _begin(self, name: str) -> None:
        if described := _described(name):
            self._tail.clear()
            self.step = described
            self.progress(described)

    def failure(self, error: str) -> StartError | _UnusableError:
        if "no active session" in error:
            return _UnusableError()
        if self._rest:
            self._line(self._rest)
        lines = [f"  {line}" for line in self._tail]
        if status := _STATUS.search(error):  # the engine repeats the whole script of the step
            hook = re.search(r"hooks\.\w+", self.step)
            error = f"{hook[0] if hook else self.step} failed with status {status[1]}"
        return StartError(
            "\n".join([f"the sandbox image could not be built: {error}", *lines]),
            hint="see the last lines of the step above; `--rebuild` starts afresh",
        )


def _described(name: str) -> str:
    """`Step 4/6: install git` of what either builder calls its fourth step; empty for its own work."""
    match = _STEP.match(name)
    if not match:
        return ""
    return f"Step {match[1]}: {match[2].partition(';')[0].removeprefix('RUN : ')}"
