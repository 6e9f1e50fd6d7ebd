"""`moat proxy`: the proxy without a sandbox, as a command of its own and around a command."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from tests.attacks.conftest import HOST, OTHER, World, world

__all__ = ["world"]
ASK = f'curl -sS -o /dev/null -w "%{{http_code}}\n" -H "x-api-key: $ANTHROPIC_API_KEY" https://{HOST}/v1/x'


@pytest.fixture(autouse=True)
def _plain(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(world.environment, "ALL_PROXY", "http://127.0.0.1:9")  # would lead around the proxy


def test_a_command_gets_proxy_certificates_and_placeholders(world: World, tmp_path: Path) -> None:
    """The directories of its files stay as they are. Seen failing: that of --ca-out was made the user's alone, /tmp too."""
    record, ca = tmp_path / "network.jsonl", tmp_path / "ca.pem"
    tmp_path.chmod(0o755)
    before = len(world.origin.received)
    done = world.command(
        "proxy", "--grant", "anthropic", "--record", str(record), "--ca-out", str(ca), "--",
        "sh", "-c", f"{ASK}; env; cat; exit 7",
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    assert done.stdout.startswith("200\n")
    assert world.secret not in done.stdout + done.stderr
    assert "ANTHROPIC_API_KEY=sk-ant-api03-" in done.stdout
    assert world.secret.encode() in b"".join(world.origin.received[before:])
    assert done.stderr.endswith(f"moat: anthropic went to {HOST} (1 request)\n")
    (line,) = [json.loads(line) for line in record.read_text().splitlines()]
    assert (line["url"], line["status"], line["grants"]) == (f"https://{HOST}/v1/x", 200, ["anthropic"])
    assert world.secret not in record.read_text()
    assert "BEGIN CERTIFICATE" in ca.read_text()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    bundle = next(
        line.partition("=")[2] for line in done.stdout.splitlines() if line.startswith("SSL_CERT_FILE=")
    )
    assert not Path(bundle).parent.exists(), "nothing is left"


def test_status_and_signals_of_the_command(world: World) -> None:
    assert world.command("proxy", "--", "sh", "-c", "kill -9 $$").returncode == 128 + 9
    missing = world.command("proxy", "--", "no-such-program")
    assert (missing.returncode, missing.stderr) == (
        3,
        "moat: error: no-such-program: No such file or directory\n",
    )
    script = 'trap "echo told; exit 5" TERM; echo ready; while :; do sleep 0.1; done'
    with subprocess.Popen(
        [world.moat, "proxy", "--", "sh", "-c", script],
        env=world.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "told\n"
    assert process.returncode == 5


def test_served_until_ctrl_c_with_events(world: World, tmp_path: Path) -> None:
    rules = tmp_path / "agent.yaml"
    rules.write_text(f"network:\n  policy: strict\n  rules:\n    - {OTHER}: [allow GET /ok]\n")
    with subprocess.Popen(
        [world.moat, "proxy", "--json", "--rules", str(rules), "--allow-host", "more.attack.test"],
        env=world.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        ready = json.loads(process.stdout.readline())
        assert ready["event"] == "ready"
        assert ready["url"].endswith(f"@127.0.0.1:{ready['port']}")
        bundle = Path(ready["environment"]["SSL_CERT_FILE"])
        assert stat.S_IMODE(bundle.parent.stat().st_mode) == 0o700
        environ = {"PATH": os.environ["PATH"], **ready["environment"]}
        for path, status in (("ok", "200"), ("no", "403")):
            told = subprocess.run(
                ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", f"https://{OTHER}/{path}"],
                env=environ, capture_output=True, text=True, check=True,
            )  # fmt: skip
            assert told.stdout == status
            event = json.loads(process.stdout.readline())
            assert (event["event"], str(event["status"])) == ("exchange", status)
            assert event["url"] == f"https://{OTHER}/{path}"
        bare = {"PATH": os.environ["PATH"], "https_proxy": f"http://127.0.0.1:{ready['port']}"}
        stranger = subprocess.run(
            ["curl", "-sS", f"https://{OTHER}/ok"], env=bare, capture_output=True, text=True, check=False
        )
        assert "407" in stranger.stderr
        process.send_signal(signal.SIGINT)
        assert json.loads(process.stdout.readline()) == {"event": "ended"}
        assert process.stderr
        assert process.stderr.read() == ""
    assert process.returncode == 130
    assert not bundle.exists()


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--json", "--", "true"], 2, "--json and a command both need stdout"),
        (["--port", "70000"], 2, "--port must be between"),
        (["--grant", "ssh:github.com", "--", "true"], 2, "the grant ssh:github.com needs a sandbox"),
        (["--grant", "github", "--", "true"], 3, "missing grant: github"),
        (["--rules", "/nowhere/agent.yaml", "--", "true"], 2, "agent.yaml:1:1: No such file"),
        (["--allow-host", "*", "--", "true"], 2, "'*' is possible only as a leading"),
        (["--record", "/nowhere/x", "--", "true"], 3, "/nowhere/x: No such file or directory"),
    ],
)
def test_mistakes(world: World, flags: list[str], status: int, message: str) -> None:
    done = world.command("proxy", *flags)
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert done.stdout == ""


def test_there_is_nobody_to_ask(world: World, tmp_path: Path) -> None:
    rules = tmp_path / "agent.yaml"
    rules.write_text("network: {policy: ask}\n")
    done = world.command("proxy", "--rules", str(rules), "--", "true")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, "moat: hint: --policy strict")
    assert world.command("proxy", "--rules", str(rules), "--policy", "strict", "--", "true").returncode == 0
