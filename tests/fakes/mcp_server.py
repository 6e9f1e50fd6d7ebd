"""Real MCP servers, written with the `mcp` SDK: what Claude Code talks to in the tests.

In a test:   with McpService(secret="…") as service: … service.port, service.received
As a program (a server on this machine, or one that Claude Code starts itself):
    python -m tests.fakes.mcp_server --port 8931
    python tests/fakes/mcp_server.py --stdio

A server with a secret answers 401 to everybody who does not send it. Its tools:

    add {"a": 1, "b": 2}       the sum
    remove {"what": "x"}       "removed x", and `x` is in `removed`
    whoami {}                  the directory, and the environment variable COLOUR
    wait {"seconds": 3}        after so many seconds
    die {}                     the process ends in the middle of the call
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from mcp.server.mcpserver import MCPServer

TOOLS = ("add", "remove", "whoami", "wait", "die")


def make_server(name: str, removed: list[str] | None = None, **options: Any) -> MCPServer:
    server = MCPServer(name, log_level="ERROR", **options)
    gone = [] if removed is None else removed

    @server.tool()
    def add(a: int, b: int) -> str:
        """Add two numbers."""
        return f"the sum is {a + b}"

    @server.tool()
    def remove(what: str) -> str:
        """Remove something for good."""
        gone.append(what)
        return f"removed {what}"

    @server.tool()
    def whoami() -> str:
        """Say where this runs."""
        return f"in {os.getcwd()} with {os.environ.get('COLOUR', 'nothing')}"

    @server.tool()
    async def wait(seconds: float) -> str:
        """Wait."""
        await asyncio.sleep(seconds)
        return f"waited {seconds:g}"

    @server.tool()
    def die() -> str:
        """End the server."""
        os._exit(1)

    return server


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes
    status: int


@dataclass
class McpService:
    """A server over HTTP in a thread of this process."""

    secret: str | None = None  # what `header` must be
    header: str = "authorization"
    certificate: Path | None = None  # PEM with its key: TLS
    json: bool = False  # answers in JSON instead of events
    stateless: bool = False  # a call needs no session
    port: int = 0
    options: dict[str, Any] = field(default_factory=dict)  # of the SDK's server
    received: list[Seen] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        from tests.fakes.asgi import served  # this file is also run alone, in sandboxes

        self.server = make_server("service", self.removed, **self.options)
        # The SDK refuses other Host fields than localhost, unless it is told that it is somewhere else.
        host = "127.0.0.1" if self.certificate is None else "0.0.0.0"
        app = self.server.streamable_http_app(
            json_response=self.json, stateless_http=self.stateless, host=host
        )
        self._serving = served(self._watched(app), self.certificate, self.port)
        self.port = self._serving.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._serving.__exit__(None, None, None)

    def calls(self) -> list[Seen]:
        return [seen for seen in self.received if b'"tools/call"' in seen.body]

    def _watched(self, app: Any) -> Any:
        """The app behind the check of the secret, every request remembered."""

        async def watched(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
            body = bytearray()
            status = 0

            async def remembered() -> Any:
                message = await receive()
                body.extend(message.get("body", b""))
                return message

            async def told(message: Any) -> None:
                nonlocal status
                status = message.get("status", status)
                await send(message)

            try:
                if self.secret is not None and headers.get(self.header) != self.secret:
                    await _refuse(told)
                else:
                    await app(scope, remembered, told)
            finally:
                path = scope["path"] + ("?" + scope["query_string"].decode() if scope["query_string"] else "")
                self.received.append(Seen(scope["method"], path, headers, bytes(body), status))

        return watched


async def _refuse(send: Any) -> None:
    await send({"type": "http.response.start", "status": 401, "headers": [(b"www-authenticate", b"Bearer")]})
    await send({"type": "http.response.body", "body": b"who are you?"})


@contextlib.contextmanager
def mortal_server(python: str, directory: Path) -> Iterator[int]:
    """A server over plain HTTP in a process of its own, which its tool `die` ends; yields its port."""
    import subprocess

    program = [python, "-m", "tests.fakes.mcp_server", "--port", "0"]
    with subprocess.Popen(program, cwd=directory, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fakes.mcp_server")
    parser.add_argument("--port", type=int, help="over HTTP on loopback; 0 takes a free one and prints it")
    parser.add_argument("--stdio", action="store_true")
    chosen = parser.parse_args()
    server = make_server("service")
    if chosen.stdio:
        server.run("stdio")
        return
    import uvicorn

    sock = socket.create_server(("127.0.0.1", chosen.port))
    print(sock.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(server.streamable_http_app(), log_level="error", ws="none")).run([sock])


if __name__ == "__main__":
    main()
