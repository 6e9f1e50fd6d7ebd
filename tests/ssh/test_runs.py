"""Real ssh and git in real sandboxes, against real servers; and everything that must not work.

Two hosts, two keys. Both servers let both keys in, so it is Moat alone that keeps a key to its host.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.ssh.world import GITHUB, NOBODY, OTHER, STRANGER, USER, SshWorld, as_nobody, run

EAVESDROP = Path(__file__).with_name("eavesdrop.py")
GRANTS = ("--grant", f"ssh:{GITHUB}", "--grant", f"ssh:{OTHER}")

# Each step prints its name and status, and leaves its output in /tmp/<name>.
SCRIPT = """
export LC_ALL=C
quick="-o BatchMode=yes -o ConnectTimeout=20"
step() { name=$1; shift; timeout 60 "$@" >/tmp/$name 2>&1 </dev/null; echo "$name $?"; }
show() { for name in "$@"; do sed "s/^/$name| /" /tmp/$name; done; }

step listed ssh-add -L
step login ssh $quick -T $user@github.com echo hello
step greeting ssh $quick -T git@github.com
step second ssh $quick -T $user@git.moat.test echo other
step clone git clone -q git@github.com:octo/hello.git /tmp/work
cd /tmp/work
git -c user.name=a -c user.email=a@example.com commit -q --allow-empty -m "from $tag"
step push git push -q origin HEAD:$tag
cd /

ssh-add -L | grep rsa > /tmp/rsa.pub
ssh-add -L | grep ed25519 > /tmp/ed25519.pub
step wrong_key ssh $quick -o IdentitiesOnly=yes -i /tmp/rsa.pub -T $user@github.com echo in
step wrong_host ssh $quick -o StrictHostKeyChecking=no -T $user@gitlab.com echo in
step forwarded ssh $quick -A -T $user@github.com "ssh-add -l; ssh $quick $onward echo onward"
step no_login ssh-keygen -Y sign -n file -f /tmp/ed25519.pub /etc/passwd
step remove_all ssh-add -D
step remove ssh-add -d /tmp/ed25519.pub
ssh-keygen -q -t ed25519 -N '' -f /tmp/mine
step add ssh-add /tmp/mine
printf '#!/bin/sh\\necho x\\n' >/tmp/pass; chmod +x /tmp/pass
step lock env SSH_ASKPASS=/tmp/pass SSH_ASKPASS_REQUIRE=force ssh-add -x

python3 /workspace/eavesdrop.py listen /tmp/ear /tmp/heard &
sleep 0.5
SSH_AUTH_SOCK=/tmp/ear step overheard ssh $quick -T $user@github.com echo hello
step replay python3 /workspace/eavesdrop.py replay /tmp/heard $(cut -d' ' -f2 /tmp/rsa.pub)
step outside python3 /workspace/eavesdrop.py replay /workspace/outside $(cut -d' ' -f2 /tmp/rsa.pub)
step not_ssh python3 /workspace/not_ssh.py
step files sh -c 'cat ~/.ssh/*; find ~/.ssh -type f; ls -ln $SSH_AUTH_SOCK'
show listed login greeting second wrong_key wrong_host forwarded no_login replay outside not_ssh files
cat /tmp/work/README
"""

NOT_SSH = """
import json, socket
found = {}
for name, first in {"tls": bytes([22, 3, 1, 0, 50]) + b"x" * 50, "http": b"GET / HTTP/1.1\\r\\n\\r\\n"}.items():
    with socket.create_connection(("github.com", 22), 20) as sock:
        sock.sendall(first)
        data = b""
        try:
            while more := sock.recv(4096):
                data += more
        except OSError:
            pass
    found[name] = data.decode("latin-1")
for port in (2222, 443):
    with socket.create_connection(("127.0.0.1", 3128), 20) as sock:
        sock.sendall(f"CONNECT github.com:{port} HTTP/1.1\\r\\nHost: github.com:{port}\\r\\n\\r\\n".encode())
        head = sock.recv(4096)
        sock.sendall(b"SSH-2.0-probe\\r\\n")
        found[port] = sock.recv(4096).decode("latin-1")
print(json.dumps(found))
"""


@dataclass
class Seen:
    """What one sandbox reported."""

    status: dict[str, int]
    output: dict[str, str]
    journal: list[dict[str, Any]]
    network: list[dict[str, Any]]
    rest: str

    def refusals(self) -> set[str]:
        return {event["code"] for event in self.journal if event["event"] == "ssh.refused"}


@pytest.fixture(scope="module")
def granted(ssh: SshWorld) -> Iterator[SshWorld]:
    """Each host with a key of its own."""
    for host, key in ((GITHUB, ssh.key("id_work")), (OTHER, ssh.key("id_rsa"))):
        done = ssh.command("grant", "ssh", "--host", host, "--key", str(key))
        assert done.returncode == 0, done.stderr
    yield ssh
    for host in (GITHUB, OTHER):
        ssh.command("revoke", f"ssh:{host}")


@pytest.fixture(scope="module")
def outside(granted: SshWorld) -> str:
    """A login from outside any sandbox, by somebody who hears what the agent is asked: not through a tunnel."""
    ear, heard = granted.directory / "ear", granted.directory / "heard"
    environment = granted.environment | {"PATH": os.environ["PATH"]}
    with subprocess.Popen(
        [sys.executable, str(EAVESDROP), "listen", str(ear), str(heard)], env=environment
    ) as process:
        try:
            wait_for(ear.exists)
            server = granted.servers[GITHUB]
            known = granted.directory / "known"
            known.write_text(f"github.com {server.host_key}\n")
            run(
                "ssh", "-F", "none", "-o", "BatchMode=yes", "-o", f"UserKnownHostsFile={known}",
                "-o", "HostKeyAlias=github.com", "-p", str(server.port), "-o", "IdentitiesOnly=yes",
                "-i", f"{granted.key('id_work')}.pub", f"{USER}@127.0.0.1", "echo", "in",
                env=environment | {"SSH_AUTH_SOCK": str(ear)},
            )  # fmt: skip
        finally:
            process.kill()
    return heard.read_text()


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("embedded", marks=pytest.mark.embedded),
        pytest.param("docker", marks=pytest.mark.docker),
    ],
)
def seen(request: pytest.FixtureRequest, granted: SshWorld, outside: str) -> Seen:
    """Everything is tried in one sandbox of each runtime."""
    place = granted.workspace()
    if request.param == "docker":
        os.chown(place, 4321, 4321)  # whose uid the agent has there
    for name, text in {
        "eavesdrop.py": EAVESDROP.read_text(), "not_ssh.py": NOT_SSH, "outside": outside
    }.items():  # fmt: skip
        (place / name).write_text(text)
    other = granted.servers[OTHER]
    known = granted.directory / "known_onward"  # read by the ssh that the first server runs: outside
    known.write_text(f"[127.0.0.1]:{other.port} {other.host_key}\n")
    onward = f"-F none -o UserKnownHostsFile={known} -p {other.port} {USER}@127.0.0.1"
    header = f"user={USER} tag={request.param}; onward='{onward}'\n"
    done = granted.run(request.param, *GRANTS, script=header + SCRIPT, timeout=240)
    assert done.returncode == 0, done.stderr + done.stdout
    status, output, rest = {}, {}, ""
    for line in done.stdout.splitlines():
        name, bar, text = line.partition("| ")
        words = line.split()
        if bar:
            output[name] = output.get(name, "") + text + "\n"
        elif len(words) == 2 and words[1].isdigit():
            status[words[0]] = int(words[1])
        else:
            rest += line + "\n"
    return Seen(status, output, granted.record("journal.jsonl"), granted.record("network.jsonl"), rest)


def test_ssh_and_git_work(seen: Seen, granted: SshWorld, request: pytest.FixtureRequest) -> None:
    assert (seen.status["login"], seen.output["login"]) == (0, "hello\n")
    assert (seen.status["greeting"], seen.output["greeting"].split("!")[0]) == (1, "Hi octocat")
    assert (seen.status["second"], seen.output["second"]) == (0, "other\n")
    assert (seen.status["clone"], seen.status["push"]) == (0, 0)
    assert "from afar" in seen.rest
    branches = run(
        "git", "-C", str(granted.repository(GITHUB)), "branch", "--format=%(refname:short) %(subject)"
    )
    assert any(line.split(" ", 1)[1] == f"from {line.split()[0]}" for line in branches.splitlines())


@pytest.mark.docker
def test_they_work_for_a_user_who_is_not_root(ssh: SshWorld, tmp_path: Path) -> None:
    """Moat, its agent and the container all run as the user; nothing is there that could change an owner."""
    world = as_nobody(ssh, tmp_path)
    done = world.command("grant", "ssh", "--host", GITHUB, "--key", str(world.key("id_work")))
    assert done.returncode == 0, done.stderr
    script = """
id -u; stat -c '%u %a' $SSH_AUTH_SOCK; ssh -T git@github.com; echo status $?
git clone -q git@github.com:octo/hello.git /tmp/work && cat /tmp/work/README
"""
    done = world.run("docker", "--grant", f"ssh:{GITHUB}", script=script)
    lines = done.stdout.splitlines()
    assert lines[:2] == [str(NOBODY), f"{NOBODY} 600"]
    assert lines[2].startswith("Hi octocat!")
    assert lines[3:] == ["status 1", "from afar"], done.stderr
    assert "ssh.sign" in {event["event"] for event in world.record("journal.jsonl")}


def test_each_host_gets_its_own_key(seen: Seen, granted: SshWorld) -> None:
    """Both would let the other key in. With RSA the flags arrive: this server takes no SHA-1 signature."""
    listed = seen.output["listed"].splitlines()
    assert {line.split()[0] for line in listed} == {"ssh-ed25519", "ssh-rsa"}
    assert set(granted.servers[GITHUB].accepted()) == {granted.fingerprint("id_work")}
    assert set(granted.servers[OTHER].accepted()) == {granted.fingerprint("id_rsa")}


def test_the_wrong_key_and_the_wrong_host_fail(seen: Seen) -> None:
    """Seen to fail with `Rules.judge` taking any granted key, and with `_refuse_ssh` relaying instead."""
    assert seen.status["wrong_key"] == 255
    assert "Permission denied" in seen.output["wrong_key"]
    assert seen.status["wrong_host"] == 255
    assert "this run has no SSH grant for gitlab.com" in seen.output["wrong_host"]
    assert "moat grant ssh --host gitlab.com" in seen.output["wrong_host"]
    (denied,) = [e for e in seen.network if e["url"] == f"{STRANGER}:22"]
    assert denied["denial"]["rule"] == "ssh grants"


def test_a_forwarded_agent_signs_nothing(seen: Seen) -> None:
    """The first host offers to go on to the second, which is granted as well.

    Seen to fail without the check for `forwarding` and without the one for the tunnel: each alone holds.
    """
    assert "Permission denied" in seen.output["forwarded"]
    assert "onward" not in seen.output["forwarded"]
    assert seen.status["forwarded"] == 255
    assert "forwarded" in seen.refusals()


def test_only_logging_in_is_signed(seen: Seen) -> None:
    assert seen.status["no_login"] != 0
    assert "refused" in seen.output["no_login"]
    for change in ("remove_all", "remove", "add", "lock"):
        assert seen.status[change] != 0, change
    tried = {event["reason"].split(" is ")[0] for event in seen.journal if event.get("code") == "message"}
    assert {"remove-all", "remove", "lock"} <= tried
    assert any(what.startswith("add") for what in tried)


def test_what_was_overheard_cannot_be_bent(seen: Seen) -> None:
    """A client of the attacker's own: bound, unbound, for another key, another session, something else.

    Each line was seen to be True with its check in `Rules` or `read_userauth` taken out.
    """
    assert json.loads(seen.output["replay"]) == {
        "as it was": True,  # the control: the same words, from the same sandbox, for the same session
        "without a binding": False,
        "another key": False,
        "something else": False,
        "the session, but no login": False,
        "a login of another kind": False,
        "another session": False,
        "forwarded": False,
        "bad signature": False,
        "bound twice": False,
    }
    assert {"unbound", "key", "data", "session", "forwarded", "signature"} <= seen.refusals()


def test_a_session_elsewhere_is_not_signed_for(seen: Seen) -> None:
    """A login that goes on outside, with the right host, that hands its request in through the sandbox.

    Seen to fail when `Rules.bind` does not ask whether the session went through the tunnel.
    """
    assert not any(json.loads(seen.output["outside"]).values())
    assert "tunnel" in seen.refusals()


def test_the_tunnel_carries_ssh_and_nothing_else(seen: Seen, granted: SshWorld) -> None:
    """Seen to fail when `SshWatch.up` lets everything pass: sshd then answers "Invalid SSH identification"."""
    found = json.loads(seen.output["not_ssh"])
    assert "Invalid" not in found["tls"] + found["http"]
    assert [e for e in seen.network if e.get("error") == "only SSH may pass here"]
    assert "no SSH grant for github.com port 2222" in found["2222"]
    assert "no SSH grant for github.com port 443" in found["443"]
    assert "Bad protocol version identification" not in granted.servers[GITHUB].log


def test_nothing_secret_is_in_the_sandbox(seen: Seen) -> None:
    files = seen.output["files"]
    assert "PRIVATE KEY" not in files
    assert [line for line in files.splitlines() if line.startswith("/home")] == [
        "/home/agent/.ssh/known_hosts"
    ]
    lines = [line.split() for line in files.splitlines() if f"{GITHUB} " in line or f"{OTHER} " in line]
    assert [line[:-2] for line in lines] == [[GITHUB], ["@cert-authority", OTHER]]
    assert "srw-------" in files


def test_everything_is_on_record(seen: Seen, granted: SshWorld) -> None:
    signed = [event for event in seen.journal if event["event"] == "ssh.sign"]
    assert {(event["hosts"][0], event["key"], event["user"]) for event in signed} == {
        (GITHUB, granted.fingerprint("id_work"), USER),
        (OTHER, granted.fingerprint("id_rsa"), USER),
    }
    assert any(event["event"] == "ssh.bind" and event["hosts"] == [GITHUB] for event in seen.journal)
    assert any(event["event"] == "ssh.list" and len(event["keys"]) == 2 for event in seen.journal)
    refused = [event for event in seen.journal if event["event"] == "ssh.refused"]
    assert all(event["reason"] for event in refused)
    tunnels = [
        e for e in seen.network if e["url"] == f"{GITHUB}:22" and e["status"] == 200 and not e.get("error")
    ]
    assert all(e["method"] == "CONNECT" for e in tunnels)
    assert any(e["request_bytes"] > 1000 and e["response_bytes"] > 1000 for e in tunnels)
