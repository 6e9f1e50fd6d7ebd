"""What agent.yaml says is so inside of the sandbox: one file with many keys, in both runtimes."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moat.grants import Credential, CredentialInfo, CredentialKind, Secret
from moat.paths import Home
from moat.runtime.confirmed import confirm
from moat.runtime.demands import Demand
from moat.vault import open_vault
from moat.vault.key import NewKey
from tests.vault.conftest import NOW
from tests.vault.vendor import Answer, Asked, Vendor, vendor

Moat = Callable[..., subprocess.CompletedProcess[str]]
BOTH = pytest.mark.parametrize("runtime", ["docker", "embedded"])
pytestmark = [pytest.mark.docker, pytest.mark.embedded, pytest.mark.timeout(300)]

SECRET = "lin_api_real_0123456789"
HOSTS = ("api.linear.app", "open.example.com", "closed.example.com")
FILE = """\
version: 1.0
name: of-the-file
agent: tester
runtime: RUNTIME
interactive: true
grants: [linear]
dependencies: [curl]
env: {COLOUR: blue, SIZE: "3.10"}
mounts: [data:/data:ro]
network:
  policy: strict
  rules:
    - open.example.com: ["allow GET /yes", "deny * /yes/no"]
  budget: {requests: 3}
command:
  - sh
  - -c
  - |
    test -t 0 && test -t 1 && echo "said terminal=yes"
    echo "said env=$COLOUR/$SIZE"
    touch /data/new 2>/dev/null || echo "said mount=$(cat /data/note)"
    ask() { echo "said $1=$(curl -s -o /dev/null -w '%{http_code}' $3 "https://$2")"; }
    ask granted api.linear.app/graphql "-H Authorization:$LINEAR_API_KEY"
    ask open open.example.com/yes
    ask closed closed.example.com/
    ask rule open.example.com/other
    ask third open.example.com/yes
    ask over open.example.com/yes
"""


def answer(asked: Asked) -> Answer:
    given = asked.headers.get("authorization")
    return (200 if asked.host != "api.linear.app" or given == SECRET else 401), {}


@pytest.fixture
def granted(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vendor]:
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    monkeypatch.setenv("MOAT_KEY_FILE", str(tmp_path / "key"))
    vault = open_vault(Home.from_environment(), new_key=lambda: NewKey(key_file=tmp_path / "key"))
    info = CredentialInfo("linear", CredentialKind.TOKEN, ("api.linear.app",), NOW)
    vault.put(Credential(info, Secret(SECRET)))
    with vendor(tmp_path / "vendor", answer, *HOSTS) as server:
        server.config(home / ".moat", *HOSTS)
        yield server


def at_a_terminal(moat_bin: str, workspace: Path, seconds: float = 200) -> str:
    """What `moat run` shows at a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [moat_bin, "run"], cwd=workspace, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    shown, deadline = b"", time.monotonic() + seconds
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:
                break
    process.wait(20)
    os.close(ours)
    assert process.returncode == 0, shown
    return shown.decode()


@BOTH
def test_what_the_file_says_is_so_inside(
    moat: Moat, moat_bin: str, granted: Vendor, tmp_path: Path, runtime: str
) -> None:
    workspace = tmp_path / "workspace"
    workspace.mkdir(exist_ok=True)
    (workspace / "data").mkdir()
    (workspace / "data" / "note").write_text("mounted")
    (workspace / "agent.yaml").write_text(FILE.replace("RUNTIME", runtime))
    confirm(Home.from_environment(), workspace, [Demand("grant", "linear")])
    shown = at_a_terminal(moat_bin, workspace)
    said = dict(re.findall(r"said (\w+)=([^\r\n]*)", shown))
    assert said["terminal"] == "yes"
    assert said["env"] == "blue/3.10"
    assert said["mount"] == "mounted"
    assert (said["granted"], said["open"]) == ("200", "200"), shown
    assert (said["closed"], said["rule"]) == ("403", "403")
    assert said["third"] == "200"
    assert said["over"] in {"403", "429"}, "three have gone out"
    (run,) = json.loads(moat("list", "--json").stdout)
    assert (run["name"], run["agent"], run["runtime"], run["grants"]) == (
        *("of-the-file", "tester", runtime, ["linear"]),
    )
    assert {asked.host for asked in granted.asked} == {"api.linear.app", "open.example.com"}
