"""The one importer of aiodocker: the engine's calls that take a while, and tell meanwhile how they go on.

Import this module late: aiodocker brings aiohttp, together a fifth of a second.
"""

# ruff: noqa: TID253 - its one importer, itself imported late

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import aiodocker
import aiohttp

from moat.runtime.engine_http import EngineError

_NO_CONNECTION = 900  # a status of aiodocker's own


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Errors of aiodocker as EngineError."""
    try:
        yield
    except aiodocker.DockerError as error:
        if error.status == _NO_CONNECTION:
            raise EngineError(f"the Docker engine does not answer: {error.message}") from None
        raise EngineError(error.message, status=error.status) from None
    except (OSError, TimeoutError, aiohttp.ClientError) as error:
        raise EngineError(f"the Docker engine went away: {error}") from None


def _client(path: Path, api_version: str) -> aiodocker.Docker:
    """`api_version`: as the engine told it (`1.41`); asking once more would cost a round trip."""
    return aiodocker.Docker(url=f"unix://{path}", api_version=f"v{api_version}")


async def pull(path: Path, api_version: str, reference: str) -> AsyncIterator[str]:
    """Pull an image; yields the engine's status lines, without those that only count bytes."""
    with _translated():
        async with _client(path, api_version) as docker:
            async for message in docker.images.pull(reference, stream=True):
                text = str(message.get("status", ""))
                if text and not message.get("progressDetail"):
                    yield f"{message['id']}: {text}" if message.get("id") else text


async def build(
    path: Path,
    api_version: str,
    context: IO[bytes],
    *,
    tag: str,
    arguments: Mapping[str, str],
    fresh: bool,
    buildkit: bool,
) -> AsyncGenerator[dict[str, Any], None]:
    """Build a tar of a context; yields the engine's messages: `stream`, `error`, BuildKit's `aux`.

    aiodocker's own call knows the classic builder only.
    """
    parameters = {
        "t": tag,
        "buildargs": json.dumps(dict(arguments)),
        "nocache": str(int(fresh)),
        "rm": "1",
        "forcerm": "1",
        "version": "2" if buildkit else "1",
    }
    with _translated():
        async with _client(path, api_version) as docker:
            request = docker._query(
                "build",
                "POST",
                params=parameters,
                headers={"Content-Type": "application/x-tar"},
                data=_pieces(context),
                timeout=aiohttp.ClientTimeout(total=None),
            )
            async with request as response, response:  # aiodocker's own context does not let go of it
                async for line in _json_lines(response.content):
                    yield line


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(file.read, 1 << 20):
        yield piece


async def _json_lines(content: aiohttp.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """One object a line; BuildKit's are longer than what aiohttp takes for a line."""
    rest = b""
    async for piece in content.iter_any():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.strip():
                yield json.loads(line)
    if rest.strip():
        yield json.loads(rest)
