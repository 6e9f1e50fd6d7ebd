"""A run that a program owns: what it can do with one, besides what every owner can."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from moat.arguments import Bytes, check
from moat.errors import StartError, UsageError
from moat.paths import Home
from moat.proxy.events import ExchangeFinished
from moat.runtime.gateway import read_exchanges
from moat.runtime.local import LocalViewer
from moat.runtime.questions import Answer, Asked, Scope
from moat.runtime.request import RunRequest
from moat.runtime.run import Run
from moat.runtime.sandbox import Output
from moat.runtime.size import Size

if TYPE_CHECKING:
    from moat.proxy.decider import Decider
    from moat.runtime.asking import Asking


class LocalRun(Run):
    """A run that this program owns."""

    def __init__(self, request: RunRequest, home: Home, decider: Decider | None = None) -> None:
        """Raises ConfigError, GrantError, StartError, UsageError; then nothing is left of it."""
        self._reader = LocalViewer()
        super().__init__(request, home, viewer=self._reader, decider=decider)

    def output(self) -> AsyncIterator[Output]:
        """What the command prints, from its first byte. One reader; it holds the command up like a pipe."""
        return self._reader.output()

    async def wait(self) -> int:
        """The command's exit status, 128+N when signal N ended it. Output that nobody reads is dropped.

        Raises StartError when the command never ran.
        """
        self._reader.let_go()
        await self._ended.wait()
        if self.record.exit_code is None:
            raise StartError(self.record.error)
        return self.record.exit_code

    async def write(self, data: bytes) -> None:
        """To the command's stdin or terminal; waits when it does not read.

        What comes after it has closed its stdin, or has ended, goes nowhere. Raises UsageError when it has
        neither stdin nor terminal.
        """
        check("data", data, Bytes)
        if not self._request.stdin and self._request.tty is None:
            raise UsageError("the command of this run has no stdin", hint="start(…, stdin=True)")
        await (await self.session()).write(data)

    async def close_stdin(self) -> None:
        """End of file for the command's stdin. Nothing happens without one, and at a terminal."""
        await (await self.session()).close_stdin()

    async def resize(self, size: Size) -> None:
        """Change the terminal's size. Nothing happens without a terminal."""
        check("size", size, Size)
        session = await self.session()
        await session.resize(self._reader, size)

    def exchanges(self) -> list[ExchangeFinished]:
        """The requests so far, oldest first. No credential is in them."""
        if self._gateway and not self.record.state.ended:
            self._gateway.flush()
        return read_exchanges(self._home, self.id)

    async def questions(self) -> AsyncIterator[Asked]:
        """Each question of a run with `policy="ask"` and no decider, when it comes up, until the run ends."""
        async for question in self._asked.new():
            yield question

    async def answer(self, host: str, *, allow: bool, scope: Scope = "run", seconds: int = 0) -> int:
        """Answer what waits for `host` (`name`, `name:port`, `*.name`; without a port 443 is meant).

        scope: `once` for the requests that wait now, `for` some seconds, `run`. Returns how many requests
        waited. Raises UsageError.
        """
        said = Answer.of_program(host, allow=allow, scope=scope, seconds=seconds)
        return self._asked.answer(said)

    @property
    def _asked(self) -> Asking:
        """Raises UsageError where nobody is asked."""
        if self.asking is None:
            raise UsageError("this run asks nothing", hint='NetworkConfig(policy="ask"), and no decider')
        return self.asking
