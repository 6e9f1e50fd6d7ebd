"""The stand-in API as a person starts it: it prints the configuration, and refuses all but its credential."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moat.config import load_user
from moat.paths import Home

REPOSITORY = Path(__file__).resolve().parents[2]
TOKEN = "sk-ant-oat01-the-only-one"
BETA = {"anthropic-beta": "claude-code-20250219,oauth-2025-04-20"}


@pytest.fixture
def printed(tmp_path: Path) -> Iterator[str]:
    command = [
        "-m",
        "tests.fakes.anthropic",
        "--port",
        "0",
        "--cert-dir",
        str(tmp_path),
        "--oauth-token",
        TOKEN,
    ]
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or "github.com" not in lines[-1].replace("raw.", ""):
            lines.append(process.stdout.readline())
            assert lines[-1], "the fake ended"
        yield "".join(lines)
        process.terminate()


def ask(port: int, ca: Path, headers: dict[str, str]) -> tuple[int, str]:
    context = ssl.create_default_context(cafile=str(ca))
    connection = http.client.HTTPSConnection("api.anthropic.com", timeout=10)
    # Connected by hand: the certificate is the API's, the address is ours.
    connection.sock = context.wrap_socket(
        socket.create_connection(("127.0.0.1", port), timeout=10), server_hostname="api.anthropic.com"
    )
    body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]})
    connection.request("POST", "/v1/messages", body, headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_its_configuration_is_moats_and_only_its_credential_counts(printed, tmp_path, home):
    place = Home(home / ".moat")
    place.root.mkdir(mode=0o700)
    place.config_file.write_text(printed[printed.index("upstream:") :])
    place.config_file.chmod(0o600)
    upstream = load_user(place).upstream
    address, port = upstream.connect_to["api.anthropic.com", 443]
    assert address == "127.0.0.1"
    assert upstream.ca_bundle == tmp_path / "ca.pem"
    for headers in (
        {},
        BETA,
        BETA | {"Authorization": "Bearer sk-ant-oat01-moat-placeholder"},
        BETA | {"x-api-key": TOKEN},
        BETA | {"Authorization": f"Bearer {TOKEN}", "x-api-key": "left over"},
        {"Authorization": f"Bearer {TOKEN}"},
    ):
        assert ask(port, tmp_path / "ca.pem", headers)[0] == 401, headers
    status, text = ask(port, tmp_path / "ca.pem", BETA | {"Authorization": f"Bearer {TOKEN}"})
    assert status == 200
    assert "event: message_stop" in text
