"""Invariants 3 and 6: only over TLS that was verified; nothing is opened or fetched for what is denied.

How each was shown to fail: with `verify_mode` CERT_NONE (`verifying_context` in tls.py) the impostor of an unknown CA gets
the credential, with `check_hostname` off the one with another's name; with a `dial`, or a question for the credential,
at the head of `_converse` (exchange.py) the denied requests count as well.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.attacks.conftest import ELSEWHERE, HOST, OTHER, PRINTED, World
from tests.attacks.origin import origin
from tests.attacks.test_no_credential import request, step
from tests.fakes.pki import make_pki


@pytest.mark.parametrize("name", [HOST, "another.attack.test"], ids=["of an unknown CA", "for another name"])
def test_an_impostor_gets_nothing(world: World, runtime: str, tmp_path: Path, name: str) -> None:
    """Whoever stands where the credential's host should be, and cannot prove to be it."""
    ca, leaf = make_pki(tmp_path, [name])
    known = world.directory / "ca.pem"
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(known.read_bytes() + (ca.read_bytes() if name != HOST else b""))
    with origin(leaf) as impostor:
        instead = {f"127.0.0.1:{world.origin.port}": f"127.0.0.1:{impostor.port}", str(known): str(bundle)}

        def change(text: str) -> str:
            for old, new in instead.items():
                text = text.replace(old, new)
            return text

        with world.configured(change):
            answers = world.probe(runtime, "through_proxy", [step("x", request("/"))])
        assert answers["x"].startswith("HTTP/1.1 502 ")
        assert "X-Moat-Error: certificate" in answers["x"]
        assert impostor.connections > 0, "else nobody was asked"
        assert impostor.everything() == b""
        assert impostor.plain == []


CONFIG = f"""\
dependencies: [python]
network:
  policy: strict
  rules: [{ELSEWHERE}: ["allow GET /ok/**"]]
"""


def get(name: str, path: str, host: str = ELSEWHERE, **more: object) -> dict[str, object]:
    text = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    return step(name, text, host, **more)


def test_nothing_is_opened_or_fetched_for_what_is_denied(world: World, runtime: str) -> None:
    """The credential is asked for anew after five seconds: once at the start, and once for what is allowed."""
    place = world.workspace("denied")
    world.asked.unlink(missing_ok=True)
    (place / "agent.yaml").write_text(CONFIG)
    plan = [
        get("path", "/denied", pause=6),
        get("stranger", "/", OTHER),
        get("allowed", "/ok/x", pause=6),
    ]
    (place / "plan.json").write_text(json.dumps(plan))
    before = (world.origin.connections, world.stranger.connections)
    done = world.command(
        "run", str(place), "--runtime", runtime, "--grant", "linear", "--",
        "python3", "/workspace/through_proxy.py",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert {name: answer[9:12] for name, answer in answers.items()} == {
        "path": "403", "stranger": "403", "allowed": "200",
    }  # fmt: skip
    assert world.origin.connections - before[0] == 1, "for the one that is allowed"
    assert world.stranger.connections == before[1]
    assert PRINTED.encode() in world.origin.everything()
    assert world.asked.read_text() == "\n\n"
