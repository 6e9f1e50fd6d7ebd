"""A run that was given a port of this machine does not get the endpoints of other runs behind it.

Seen failing without `own_port`: the tunnel and the plain request brought the other run's page.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moat.paths import Home
from moat.runtime.endpoints import spawn
from tests.git.kit import RUNTIMES

PROBE = """
import json, socket, ssl, sys
port = int(sys.argv[1])
anybody = ssl._create_unverified_context()
def ask(address, name, head=b""):
    try:
        sock = socket.create_connection(address, 5)
        if head:
            sock.sendall(head)
            sock.recv(200)
        if name:
            sock = anybody.wrap_socket(sock, server_hostname=name)
        sock.sendall(b"GET / HTTP/1.1\\r\\nHost: web.alpha.localhost:%d\\r\\nConnection: close\\r\\n\\r\\n" % port)
        answer = b""
        while piece := sock.recv(4096):
            answer += piece
        return answer.decode()
    except OSError as error:
        return repr(error)
connect = b"CONNECT moat-host:%d HTTP/1.1\\r\\nHost: moat-host:%d\\r\\n\\r\\n" % (port, port)
print(json.dumps([
    ask(("moat-host", port), "web.alpha.localhost"),
    ask(("moat-host", port), ""),
    ask(("127.0.0.1", 3128), "web.alpha.localhost", connect),
    ask(("127.0.0.1", 3128), "", connect),
]))
"""
SERVER = "echo the-page-of-alpha > index.html; exec python3 -m http.server 3000"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_no_run_uses_the_endpoints_of_another(
    moat: Callable[..., subprocess.CompletedProcess[str]], home: Path, tmp_path: Path, runtime: str
) -> None:
    alpha, beta = tmp_path / "alpha", tmp_path / "beta"
    alpha.mkdir(), beta.mkdir()
    (alpha / "agent.yaml").write_text("runtime: embedded\nports: {web: 3000}\n")
    assert moat("run", "-d", "--name", "alpha", "--", "sh", "-c", SERVER, cwd=alpha).returncode == 0
    port = spawn.port_of(Home(home / ".moat"))
    page = ["curl", "-sk", "--noproxy", "*", "--resolve", f"web.alpha.localhost:{port}:127.0.0.1"]
    deadline = time.monotonic() + 20
    while (
        "the-page-of-alpha"
        not in subprocess.run(
            [*page, f"https://web.alpha.localhost:{port}/"], capture_output=True, text=True, check=False
        ).stdout
    ):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    (beta / "agent.yaml").write_text(f"runtime: {runtime}\nnetwork: {{host: [{port}]}}\n")
    done = moat("run", "--name", "beta", "--", "python3", "-c", PROBE, str(port), cwd=beta)
    answers = json.loads(done.stdout)
    assert not [answer for answer in answers if "the-page-of-alpha" in answer], answers
    assert sum("are the endpoints of runs, which no run may use" in answer for answer in answers) == 2, (
        answers
    )
    assert moat("stop", "alpha").returncode == 0
