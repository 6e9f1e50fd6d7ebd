"""A command's streams as their reader meets them."""

from __future__ import annotations

import os

import pytest

from moat.runtime.stdio import open_pipes

pytestmark = pytest.mark.anyio


async def test_stdout_comes_first_and_neither_stream_waits_for_the_other() -> None:
    """Seen failing with streams that take turns from call to call: stderr is first at every other time."""
    streams = open_pipes(stdin=False)
    _, out, err = streams.child

    async def both() -> list[str]:
        os.write(err, b"warning")
        os.write(out, b"result")
        return [output.stream for output in (await streams.read(), await streams.read()) if output]

    try:
        assert await both() == ["stdout", "stderr"]
        os.write(out, b"x" * 65536)  # all that a pipe takes, so that there is more after one read
        assert [output.stream for output in (await streams.read(),) if output] == ["stdout"]
        assert await both() == ["stderr", "stdout"], "a stream that floods is not read alone"
    finally:
        streams.close()
