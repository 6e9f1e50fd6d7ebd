"""Invariant 2: no way out but the proxy; nor for root in the sandbox.

How each was shown to fail: with `"NetworkMode": "bridge"` (container.py) the canary and the neighbour are
reached, by the agent and by root; without the seccomp profile root opens an AF_VSOCK socket on an old
engine. The embedded launcher refuses to start without a network namespace of its own; what its
defences do one by one is in tests/runtime/test_embedded_attacks.py. (When you try such a mutation, take
the metadata address and the name look-up out of the probe first: they would leave this machine.)
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.canary import Canary, host_addresses
from tests.attacks.conftest import PROBES, World

Attacker = Callable[[str, object], dict[str, Any]]
METADATA = "169.254.169.254"


def plan(bird: Canary, others: list[tuple[str, int]]) -> dict[str, object]:
    return {
        "hosts": [*host_addresses(), METADATA],
        "tcp": bird.tcp,
        "udp": bird.udp,
        "others": [*others, (METADATA, 80), (METADATA, 443)],
    }


@pytest.fixture(scope="module")
def neighbour() -> Iterator[str]:
    """Another container, on the engine's ordinary bridge, that serves `canary` on port 8000."""
    code = (
        "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalPort => 8000, Listen => 5, ReuseAddr => 1);"
        'while (my $c = $s->accept) { $c->recv(my $x, 100); $c->send("canary"); close $c }'
    )
    run = ["docker", "run", "-d", "--rm", "moat-base:bookworm", "perl", "-e", code]
    container = subprocess.run(run, check=True, capture_output=True, text=True).stdout.strip()
    try:
        form = "{{.NetworkSettings.IPAddress}}"
        yield subprocess.run(
            ["docker", "inspect", "-f", form, container], check=True, capture_output=True, text=True
        ).stdout.strip()
    finally:
        subprocess.run(["docker", "rm", "-f", container], check=True, capture_output=True)


def test_nothing_outside_can_be_reached(attacker: Attacker, bird: Canary, neighbour: str) -> None:
    found = attacker("ways_out", plan(bird, [(neighbour, 8000)]))
    reached = {name: result for name, result in found.items() if result == "REACHED"}
    assert not reached
    assert bird.knocks == [], "the host was reached from inside"
    assert found["vsock"] != "REACHED"


def test_the_probe_finds_the_canary_when_nothing_is_in_the_way(
    bird: Canary, neighbour: str, tmp_path: Path
) -> None:
    """The control: the same probe outside a sandbox reaches what the test above must not."""
    wishes = plan(bird, [(neighbour, 8000)]) | {"hosts": ["127.0.0.1"]}
    wishes["others"] = [(neighbour, 8000)]
    plan_file = tmp_path / "plan.json"
    plan_file.write_text(json.dumps(wishes))
    done = subprocess.run(
        [sys.executable, str(PROBES / "ways_out.py"), str(plan_file)],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["tcp 127.0.0.1"] == "REACHED"
    assert found["udp 127.0.0.1"] == "REACHED"
    assert found[f"tcp {neighbour}"] == "REACHED"
    assert bird.knocks


def test_a_name_never_reaches_a_resolver(attacker: Attacker, bird: Canary) -> None:
    """Names get a synthetic address from the stub in the sandbox; no query leaves (DNS exfiltration)."""
    found = attacker("ways_out", plan(bird, []))
    assert isinstance(found["name"], list)
    assert all(address.startswith("127.") for address in found["name"]), found["name"]
    assert not [knock for knock in bird.knocks if "attacker" in knock]


@pytest.mark.embedded
def test_embedded_has_no_root(world: World) -> None:
    """Neither a user namespace nor a setuid program gives uid 0; `--disable-userns` off makes it fail."""
    script = (
        "id -u; unshare -Ur id -u 2>&1 || echo refused; "
        "(command -v su >/dev/null && echo | su -c 'id -u' 2>&1) || echo refused; "
        "grep -E '^(CapEff|CapPrm|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status"
    )
    done = world.command("run", str(world.workspace("ws")), "--runtime", "embedded", "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")
    assert lines[0] != "0"
    assert "0" not in lines[1:3]
    status = dict(line.split(":\t") for line in lines if ":\t" in line)
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


@pytest.mark.embedded
def test_core_pattern_cannot_be_written(world: World) -> None:
    """The escape of facts/isolation 4.3: root's bwrap leaves /proc/sys writable (write back what was read)."""
    script = (
        "for f in kernel/core_pattern kernel/hostname vm/drop_caches; do "
        'p=/proc/sys/$f; v=$(cat $p 2>/dev/null); (printf %s "$v" > $p) 2>/dev/null && echo WRITTEN $f; done; echo end'
    )
    done = world.command("run", str(world.workspace("ws")), "--runtime", "embedded", "--", "sh", "-c", script)
    assert done.stdout.strip() == "end"
