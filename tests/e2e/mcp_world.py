"""A user with MCP servers: one behind TLS that wants a secret, one on this machine."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY
from tests.e2e.claude_world import World, configure
from tests.e2e.sites import site
from tests.fakes.mcp_server import McpService
from tests.fakes.pki import make_pki

HOST = "mcp.example.test"
URL = f"https://{HOST}/mcp"


@dataclass
class McpWorld:
    world: World
    directory: Path
    remote: McpService
    local: McpService
    secret: str

    def write(self, text: str, *, policy: str = "strict", runtime: str = "embedded") -> None:
        """agent.yaml, with what a Python server in the sandbox needs. {local} is a port."""
        head = f"network: {{policy: {policy}}}\ndependencies: [python]\nmounts: ['{site(runtime)}:/opt/site:ro']\n"
        (self.world.workspace / "agent.yaml").write_text(head + text.replace("{local}", str(self.local.port)))

    def journal(self, event: str) -> list[dict[str, Any]]:
        """The data of such events of the newest run."""
        run = self.world.runs()[0]["id"]
        lines = (self.world.home / ".moat/runs" / run / "journal.jsonl").read_text().splitlines()
        return [record["data"] for record in map(json.loads, lines) if record["event"] == event]


@contextmanager
def mcp_world(world: World, directory: Path) -> Iterator[McpWorld]:
    directory.mkdir(exist_ok=True)
    secret = "real-" + secrets.token_hex(16)
    ca, leaf = make_pki(directory, [HOST, "auth.example.test"])
    with (
        McpService(secret=f"Bearer {secret}", certificate=leaf) as remote,
        McpService() as local,
    ):
        detours = {f"{HOST}:443": f"127.0.0.1:{remote.port}"}
        configure(world.home, world.fake, roots=ca.read_bytes(), detours=detours)
        (world.workspace / "server.py").write_bytes((REPOSITORY / "tests/fakes/mcp_server.py").read_bytes())
        (world.workspace / "probe.py").write_bytes((Path(__file__).parent / "mcp_probe.py").read_bytes())
        yield McpWorld(world, directory, remote, local, secret)


def tool(name: str, **arguments: Any) -> str:
    return f"FAKE_TOOL {name} " + json.dumps(arguments)
