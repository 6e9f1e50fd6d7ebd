"""Questions, attacked from inside: the sandbox cannot answer them, tire the proxy out, or get more than was said.

How each was shown to fail: with the run's directory mounted into the sandbox (`mounts` in `Assembly._spec`) the probe finds
`control.sock`, and with Docker its answer is taken; with `pattern.names` for `matches` the other port is open; without `_with_credential` the credential goes
to a path that no rule allows; with `_FOR_ONE` = 1000 all thirty wait.
"""

from __future__ import annotations

import json
import time
from typing import Any

from tests.attacks.conftest import HOST, OTHER, World

CONFIG = f"""\
dependencies: [python]
network: {{policy: ask, rules: [{HOST}: ["allow GET /ok/**"]]}}
"""


def waiting(world: World, run: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(world.command("ask", run, "--json").stdout)
    return found


def printed(world: World, run: str, lines: int) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 60
    while len(out := world.command("logs", run).stdout.splitlines()) < lines:
        assert time.monotonic() < deadline, out
        time.sleep(0.2)
    return [json.loads(line) for line in out]


def test_only_the_user_answers(world: World, runtime: str) -> None:
    place = world.workspace(f"ask-{runtime}")
    (place / "agent.yaml").write_text(CONFIG)
    name = f"asks-{runtime}"
    socket = "$(cat /workspace/socket)"
    probe = f"until [ -s socket ]; do sleep 0.1; done; exec python3 asks.py {OTHER} {HOST} {socket}"
    before = world.stranger.connections, len(world.origin.received)
    done = world.command(
        "run", str(place), "--runtime", runtime, "-d", "--name", name, "--grant", "anthropic", "--",
        "sh", "-c", probe,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = next(row for row in json.loads(world.command("list", "--json").stdout) if row["name"] == name)
    (place / "socket").write_text(record["socket"])

    first = printed(world, name, 1)[0]
    assert all(reply.startswith("no: ") for path, reply in first["sockets"].items() if "control" in path), (
        first
    )
    assert [path for path in first["sockets"] if path.endswith("control.sock")] == [record["socket"]], "tried"
    assert not [path for path, reply in first["sockets"].items() if "requests" in reply or reply == "seen"]
    assert first["meanwhile"]["known"].startswith("HTTP/1.1 200"), "the rest of the run goes on"
    assert first["meanwhile"]["credential"].startswith("HTTP/1.1 403")
    assert "would go out" in first["meanwhile"]["credential"]
    (asked,) = waiting(world, name)
    assert (asked["host"], asked["port"], asked["requests"]) == (OTHER, 443, 16), "one question"
    assert world.stranger.connections == before[0], "nothing is opened for what waits"
    listed = next(row for row in json.loads(world.command("list", "--json").stdout) if row["name"] == name)
    assert listed["asks"] == [OTHER]
    assert "ASKS ABOUT" in world.command("list").stdout

    approved = world.command("approve", OTHER, "--json")
    assert approved.returncode == 0, approved.stderr
    assert json.loads(approved.stdout)["requests"] == 16
    deadline = time.monotonic() + 30
    while not (found := waiting(world, name)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert (found[0]["host"], found[0]["port"]) == (OTHER, 8443), "this host, and this port alone"
    denied = world.command("deny", name, f"{OTHER}:8443", "--for", "10m")
    assert denied.returncode == 0, denied.stderr

    answers = printed(world, name, 2)[1]
    held = [answers[f"held {number}"][9:12] for number in range(30)]
    assert (held.count("200"), held.count("429")) == (16, 14), "one too many is told to come back"
    assert answers["after"].startswith("HTTP/1.1 200")
    assert answers["other port"].startswith("HTTP/1.1 403")
    assert "the user does not want this run to reach" in answers["other port"]
    assert b"/not-in-the-rules" not in b"".join(world.origin.received[before[1] :])
    assert world.secret.encode() not in b"".join(map(bytes, world.stranger.received)), "reaching is not using"
    journal = world.command("audit", name).stdout
    assert f'answer=allow  by="moat command"  host={OTHER}:443  requests=16  scope=run' in journal
    assert "ask.asked" in journal
