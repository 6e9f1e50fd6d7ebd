"""Invariants 8 and 10: the sandbox cannot reach its journal, the journal tells, and without it nothing goes out.

Seen failing: with the run's directory mounted into the sandbox (`mounts` in run.py) the probe reads and cuts the
journal; without `on_use` in exchange.py the credential reaches the origin although nothing can be recorded; without
`_admits` (writer.py) and `_has_room` (trace.py) a flood of requests makes both files as large as it likes.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.conftest import HOST, OTHER, World
from tests.attacks.test_no_credential import request, step

Attacker = Callable[[str, object], dict[str, Any]]


def newest(world: World) -> str:
    return str(json.loads(world.command("list", "--json").stdout)[0]["id"])


def entries(world: World, run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in world.command("audit", run, "--json").stdout.splitlines()]


def test_the_journal_is_out_of_reach(attacker: Attacker, world: World) -> None:
    home = Path(world.environment["MOAT_HOME"])
    world.command("run", str(world.workspace("ws")), "--runtime", "embedded", "--", "true")
    run = home / "runs" / newest(world)
    paths = [run / "journal.jsonl", run / "journal.head", home / "journal/key", home / "journal/ledger.jsonl"]
    assert all(path.is_file() for path in paths)
    before = [path.read_bytes() for path in paths[:3]]
    found = attacker("journal", {"paths": [str(path) for path in paths]})
    assert found == {"reached": {}, "held": []}
    assert [path.read_bytes() for path in paths[:3]] == before
    key = paths[2].read_text().strip().removeprefix("ed25519:")
    hunt = attacker(
        "treasure",
        {"needles": {"key": key, "journal": '"event":"journal.opened"'}, "since": world.since},
    )
    assert hunt["places"] == {"key": [], "journal": []}
    # Not of all runs: another test cuts the journal of one.
    audit = world.command("audit", run.name, "--verify")
    assert audit.returncode == 0, audit.stdout
    assert world.command("audit", "--workspace", str(world.workspace("ws")), "--verify").returncode == 0


def test_uses_and_refusals_are_told_with_their_exchanges(world: World, runtime: str) -> None:
    """One credential used three times, one stranger, one forbidden address: entries and trace agree."""
    world.probe(
        runtime,
        "through_proxy",
        [
            *(step(f"use {n}", request(f"/{n}", fields="x-api-key: sk-x\r\n")) for n in range(3)),
            step("stranger", request("/s", OTHER), OTHER),
            {"name": "metadata", "connect": "169.254.169.254:80", "tls": None, "send": "GET /m?token=t HTTP/1.1\r\n"
             "Host: 169.254.169.254\r\nConnection: close\r\n\r\n"},
        ],
    )  # fmt: skip
    run = newest(world)
    found = entries(world, run)
    assert [e["event"] for e in found if e["event"].startswith(("run.", "sandbox.", "journal."))] == [
        "journal.opened", "run.created", "sandbox.made", "run.started", "run.command_ended", "run.ended",
        "journal.sealed",
    ]  # fmt: skip
    (resolved,) = [e["data"] for e in found if e["event"] == "secret.resolved"]
    assert resolved == {"grant": "anthropic", "kind": "api-key"}
    uses = [e["data"] for e in found if e["event"] == "grant.used"]
    assert {(u["grant"], u["host"]) for u in uses} == {("anthropic", f"{HOST}:443")}
    assert sum(u["count"] for u in uses) == 3
    trace = [json.loads(x) for x in world.command("trace", "--network", "--json", run).stdout.splitlines()]
    assert numbers(uses) == {t["id"] for t in trace if t.get("grants")}
    (denied,) = [e["data"] for e in found if e["event"] == "network.denied"]
    assert (denied["authority"], denied["path"], denied["code"]) == ("169.254.169.254", "/m", "address")
    assert numbers([denied]) == {t["id"] for t in trace if t.get("denial")}
    assert world.secret not in json.dumps(found)
    assert world.command("audit", run, "--verify").returncode == 0


def numbers(told: list[dict[str, Any]]) -> set[int]:
    found: set[int] = set()
    for entry in told:
        for part in entry["exchanges"].split(","):
            first, _, last = part.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
    return found


@pytest.mark.parametrize("how", ["full", "cut"])
def test_a_credential_stays_when_its_use_cannot_be_recorded(world: World, runtime: str, how: str) -> None:
    """The journal's disk is full, or somebody cut it: the origin gets nothing, the agent a 503 that says why."""
    place = world.workspace("closed")
    (place / "plan.json").write_text(json.dumps([step("use", request("/x", fields="x-api-key: sk-x\r\n"))]))
    (place / "go").unlink(missing_ok=True)
    before = len(world.origin.received)
    script = "while [ ! -e go ]; do sleep 0.05; done; python3 through_proxy.py > answer"
    started = world.command(
        "run", str(place), "-d", "--runtime", runtime, "--name", f"closed-{how}-{runtime}", "--grant", "anthropic",
        "--", "sh", "-c", script,
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    run = started.stdout.strip()
    journal = Path(world.environment["MOAT_HOME"]) / "runs" / run / "journal.jsonl"
    if how == "cut":
        os.truncate(journal, 100)
    else:
        _fill(world, run)
    (place / "go").touch()
    deadline = time.monotonic() + 60
    while json.loads(world.command("list", "--json").stdout)[0]["state"] not in {"stopped", "failed"}:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    answer = json.loads((place / "answer").read_text())["use"]
    assert " 503 " in answer.split("\r\n")[0]
    assert "the journal cannot be written" in answer
    assert len(world.origin.received) == before or world.secret.encode() not in b"".join(
        bytes(log) for log in world.origin.received[before:]
    )
    assert world.command("audit", run, "--verify").returncode == (1 if how == "cut" else 0)


def _fill(world: World, run: str) -> None:
    """No byte more goes into any file of this supervisor, as on a full disk."""
    (pid,) = [r["pid"] for r in json.loads(world.command("list", "--json").stdout) if r["id"] == run]
    journal = Path(world.environment["MOAT_HOME"]) / "runs" / run / "journal.jsonl"
    limit = str(journal.stat().st_size)
    subprocess.run(["prlimit", "--pid", str(pid), f"--fsize={limit}:{limit}"], check=True)


def test_a_flood_fills_no_disk_and_pushes_nothing_out(world: World, runtime: str) -> None:
    """Limits of 16 KiB, which a sandbox passes on purpose; then it wants the credential used unrecorded."""
    seen = len(world.origin.received)
    flood = [
        {"name": f"flood {port}", "connect": f"169.254.169.254:{port}", "tls": None,
         "send": f"GET /{port}/{'x' * 900} HTTP/1.1\r\nHost: 169.254.169.254:{port}\r\nConnection: close\r\n\r\n"}
        for port in range(2000, 2040)
    ]  # fmt: skip
    use = step("use", request("/x", fields="x-api-key: sk-x\r\n"), pause=7)
    with world.configured(lambda text: text + "journal: {max_size: 16k, max_trace: 16k}\n"):
        answers = world.probe(runtime, "through_proxy", [*flood, use])
    run = newest(world)
    place = Path(world.environment["MOAT_HOME"]) / "runs" / run
    assert " 503 " in answers["use"].split("\r\n")[0]
    assert "it has reached its limit of 16,384 bytes" in answers["use"]
    assert b"/x" not in b"".join(bytes(log) for log in world.origin.received[seen:])
    assert (place / "journal.jsonl").stat().st_size < 16_384 + 8_000
    assert (place / "network.jsonl").stat().st_size < 16_384 + 8_000
    told = entries(world, run)
    found = {e["event"]: e["data"] for e in told}
    assert found["journal.full"] == {"bytes": 16_384}
    assert found["trace.full"] == {"bytes": 16_384}
    assert sum(e["data"]["entries"] for e in told if e["event"] == "journal.lost") > 10
    assert found["run.ended"]["exit_code"] == 0
    lines = (place / "network.jsonl").read_text().splitlines()
    assert json.loads(lines[-1]) == {"dropped": found["trace.closed"]["dropped"]}
    assert len(lines) - 2 + found["trace.closed"]["dropped"] == 41, "every exchange is told or counted"
    shown = world.command("trace", "--network", run)
    assert "2000" in shown.stdout, "what came first is still there"
    assert f"{found['trace.closed']['dropped']} exchanges are not in this trace" in shown.stderr
    assert world.command("audit", run, "--verify").returncode == 0
