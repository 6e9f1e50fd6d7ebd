"""`moat demo`, end to end, and that it fails loudly when what it claims is not true."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moat.cli import demo, demo_view
from moat.cli.stage import Received, Stage, host_addresses, stage
from moat.paths import Home

Moat = Callable[..., subprocess.CompletedProcess[str]]
RUNTIMES = [
    pytest.param("embedded", marks=pytest.mark.embedded),
    pytest.param("docker", marks=pytest.mark.docker),
]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_claim_holds(runtime: str, moat: Moat) -> None:
    done = moat("demo", "--json", "--runtime", runtime, timeout=110)
    assert done.stderr == ""
    result = json.loads(done.stdout)
    assert result["holds"], [check for check in result["checks"] if not check["holds"]]
    assert done.returncode == 0
    assert result["runtime"] == runtime
    assert {side["grant"] for side in result["sides"]} == {"anthropic", "github"}
    for side in result["sides"]:
        assert side["sandbox"] != side["origin"]
    assert {check["group"] for check in result["checks"]} == {"credentials", "echo", "ways out", "record"}
    assert len(result["checks"]) >= 20


@pytest.mark.embedded
def test_it_is_quick_and_needs_neither_docker_nor_network(moat_bin: str, tmp_path: Path) -> None:
    """In a network namespace without any interface but lo, with no engine in sight."""
    started = time.monotonic()
    program = ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
    done = subprocess.run(
        [*program, moat_bin, "demo", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"DOCKER_HOST": "unix:///nonexistent"},
        cwd=tmp_path,
    )
    elapsed = time.monotonic() - started
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["holds"]
    assert elapsed < 10, f"{elapsed:.1f} s"


@pytest.mark.embedded
def test_piped_output_is_plain_and_80_columns_wide(moat: Moat) -> None:
    done = moat("demo")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "\x1b" not in done.stdout
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    assert re.fullmatch(r"isolated: (\d+) of \1 claims hold \(\d+\.\d s\)", lines[-1])


@pytest.mark.embedded
def test_nothing_stays_behind(moat: Moat, home: Path) -> None:
    done = moat("demo")
    assert done.returncode == 0
    assert not list((home / ".moat").rglob("stage-*"))
    assert json.loads(moat("list", "--json").stdout) == []


def test_without_bubblewrap_it_says_what_to_install(moat: Moat, tmp_path: Path) -> None:
    """A PATH that has everything but bwrap."""
    for program in ("sh", "env", "setpriv", "python3"):
        found = next(Path(d) / program for d in os.environ["PATH"].split(":") if (Path(d) / program).exists())
        (tmp_path / program).symlink_to(found)
    done = moat("demo", env=os.environ | {"PATH": str(tmp_path)})
    assert done.returncode == 3
    assert done.stdout == ""
    assert "moat: error:" in done.stderr
    assert "bubblewrap" in done.stderr.split("moat: hint:", 1)[1]


@pytest.fixture
def world(tmp_path: Path):
    with stage(Home(tmp_path / ".moat"), ["api.anthropic.com", "api.github.com", demo.STRANGER]) as value:
        yield value


def seen_by(world: Stage, holdings: tuple[demo.Holding, ...], **changes: object) -> dict[str, object]:
    """What the probe prints from a sound sandbox: run it right here with nothing to find."""
    import base64
    import zlib

    heap = b" ".join(f"stand-in-{h.grant}".encode() for h in holdings)
    answers = [
        {
            "sent": {"authorization": f"Bearer stand-in-{h.grant}"},
            "answer": {"status": 200, "headers": {}, "body": '{"headers": {"authorization": "Bearer ****"}}'},
        }
        for h in holdings
    ]
    for h in holdings:
        headers = {"authorization": f"Bearer {h.secret}"}
        world.origin.received.append(Received(h.host, "POST", "/v1/demo", headers))
    ways = [
        {"reached": False, "detail": "refused", "denial": '{"error": "no"}'} for _ in demo.ways_out(world)
    ]
    look = {"files": 3, "heap": base64.b64encode(zlib.compress(heap)).decode()}
    return {"uid": 1000, "requests": answers, "ways": ways, "look": look} | changes


def claims(world: Stage, holdings: tuple[demo.Holding, ...], seen: dict) -> dict[str, bool]:
    checks = [*demo._credentials(world, holdings, seen), *demo._ways(world, demo.ways_out(world), seen)]
    return {check.claim: check.holds for check in checks}


def test_a_sound_sandbox_passes(world: Stage) -> None:
    holdings = demo.draw()
    assert all(claims(world, holdings, seen_by(world, holdings)).values())


@pytest.mark.parametrize("form", [0, 1, 2, 3, 4], ids=["raw", "hex", "base64", "base64+1", "base64+2"])
def test_a_credential_in_the_sandbox_is_found_in_any_form(world: Stage, form: int) -> None:
    import base64
    import zlib

    holdings = demo.draw()
    seen = seen_by(world, holdings)
    leak = demo._forms(holdings[0].secret)[form]
    heap = b"stand-in-anthropic stand-in-github " + b"x" * form + leak + b" y"
    seen["look"] = {"files": 1, "heap": base64.b64encode(zlib.compress(heap)).decode()}
    result = claims(world, holdings, seen)
    assert not result["anthropic: the sandbox holds a stand-in only"]
    assert result["github: the sandbox holds a stand-in only"]


def test_base64_forms_match_wherever_the_secret_starts() -> None:
    import base64

    secret = demo.draw()[0].secret
    for before in range(6):
        text = base64.b64encode(b"u" * before + secret.encode() + b"tail")
        assert any(form in text for form in demo._forms(secret)[2:]), before


def test_an_echoed_credential_is_noticed(world: Stage) -> None:
    holdings = demo.draw()
    seen = seen_by(world, holdings)
    seen["requests"][1]["answer"]["headers"]["x-echo"] = holdings[1].secret
    assert not claims(world, holdings, seen)["github: an origin that echoes it cannot hand it back"]


def test_a_placeholder_that_reaches_the_origin_is_noticed(world: Stage) -> None:
    holdings = demo.draw()
    seen = seen_by(world, holdings)
    world.origin.received[0].headers["authorization"] = "Bearer stand-in-anthropic"
    assert not claims(world, holdings, seen)["anthropic: the origin got the credential"]


def test_a_way_out_is_noticed(world: Stage) -> None:
    holdings = demo.draw()
    for number, way in enumerate(demo.ways_out(world)):
        seen = seen_by(world, holdings)
        seen["ways"][number] = {"reached": True, "detail": "connected"}
        assert not claims(world, holdings, seen)[way["text"]]
        world.origin.received.clear()


def test_a_broken_proxy_is_not_taken_for_a_refusal(world: Stage) -> None:
    holdings = demo.draw()
    seen = seen_by(world, holdings)
    ways = demo.ways_out(world)
    number = next(i for i, way in enumerate(ways) if way["kind"] == "connect")
    seen["ways"][number] = {"reached": False, "error": True, "detail": "Connection refused"}
    assert not claims(world, holdings, seen)[ways[number]["text"]]


def test_the_canary_tells_who_touched_it(world: Stage) -> None:
    import socket

    for address in host_addresses():
        socket.create_connection((address, world.canary.port), timeout=5).close()
    deadline = time.monotonic() + 5
    while len(world.canary.touched) < len(host_addresses()) and time.monotonic() < deadline:
        time.sleep(0.01)
    holdings = demo.draw()
    result = claims(world, holdings, seen_by(world, holdings))
    assert not result["nothing arrived at the services of this machine"]


def test_root_in_the_sandbox_is_noticed(world: Stage) -> None:
    holdings = demo.draw()
    result = claims(world, holdings, seen_by(world, holdings, uid=0))
    assert not result["the agent is not root in the sandbox"]


def test_a_failed_claim_is_loud() -> None:
    report = demo.Report("embedded", checks=[demo.Check("ways out", "x", False, "connected")])
    assert not report.holds
    assert "NOT ISOLATED: 0 of 1 claims hold" in demo_view.verdict(report)
    assert not demo.Report("embedded").holds, "nothing checked is nothing proven"


def test_a_python_outside_usr_is_shown_to_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.shutil, "which", lambda *_a, **_k: None)
    (program,), (mount,) = demo.interpreter("embedded")
    assert mount.read_only
    assert (mount.source, mount.target) == (Path(sys.base_prefix), "/opt/python")
    assert (Path(sys.base_prefix) / program.removeprefix("/opt/python/")).exists()
    assert demo.interpreter("docker") == (("python3",), ())
