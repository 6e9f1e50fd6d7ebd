"""Invariant 1 over a WebSocket: a credential that goes out on the upgrade, or in a message, comes back in none.

Shown to fail with `ServerFrames` replaced by a filter that passes everything: the probe prints the key.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import websockets
from websockets.sync.server import ServerConnection, serve

from tests.attacks.conftest import HOST, World

PROBE = f"""\
import json, os, ssl
from websockets.sync.client import connect
got = []
headers = {{"x-api-key": os.environ["ANTHROPIC_API_KEY"]}}
with connect("wss://{HOST}/ws", proxy="http://127.0.0.1:3128", ssl=ssl.create_default_context(), additional_headers=headers) as socket:
    for _ in range(4):
        message = socket.recv()
        got.append(message if isinstance(message, str) else message.decode())
print(json.dumps(got))
"""


def tells_all(connection: ServerConnection) -> None:
    """Sends the key that came with the upgrade, whole, in pieces, and as bytes."""
    assert connection.request is not None
    key = connection.request.headers["x-api-key"]
    connection.send(json.dumps({"key": key}))
    connection.send([key[:3], key[3:50], key[50:]])
    connection.send(key.encode())
    connection.send(f"{len(key)} {key[:14]}")


@contextlib.contextmanager
def websocket_origin(world: World) -> Iterator[None]:
    """In place of the world's origin: real frames by a real library."""
    with serve(tells_all, "127.0.0.1", 0, ssl=world.origin.context) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        instead = f"127.0.0.1:{server.socket.getsockname()[1]}"
        try:
            with world.configured(lambda text: text.replace(f"127.0.0.1:{world.origin.port}", instead)):
                yield
        finally:
            server.shutdown()
            thread.join(10)


def test_no_frame_brings_the_credential_back(world: World, runtime: str) -> None:
    place = world.workspace("socket")
    (place / "agent.yaml").write_text("dependencies: [python]\n")
    library = Path(websockets.__file__).parent
    shutil.copytree(
        library,
        place / "websockets",
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("*.so", "__pycache__"),
    )
    (place / "socket_probe.py").write_text(PROBE)
    with websocket_origin(world):
        done = world.command(
            "run",
            str(place),
            "--runtime",
            runtime,
            "--grant",
            "anthropic",
            "--",
            "python3",
            "/workspace/socket_probe.py",
        )
    assert done.returncode == 0, done.stderr
    whole, pieces, plain, length = json.loads(done.stdout)
    stars = "*" * len(world.secret)
    assert json.loads(whole) == {"key": stars}
    assert pieces == plain == stars
    # The beginning of a secret at the end of a message is masked as well.
    assert length == f"{len(world.secret)} {'*' * 14}", "the real one had gone out"
    run = json.loads(world.command("list", "--json").stdout)[0]["id"]
    (line,) = [
        json.loads(line) for line in world.command("trace", "--network", "--json", run).stdout.splitlines()
    ]
    assert (line["status"], line["messages"], line["grants"]) == (101, [0, 4], ["anthropic"])
