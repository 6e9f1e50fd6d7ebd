"""The way in is no way out: attacks from inside real sandboxes that have endpoints, and beside them.

The rest of the isolation is attacked in tests/attacks, on runs that have an endpoint too.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moat.runtime.endpoints.peer import owner
from tests.attacks.canary import Canary, canary
from tests.endpoints.conftest import INSIDE, Place, wait_until

RUNTIMES = {"alpha": "embedded", "beta": "docker"}
pytestmark = [pytest.mark.embedded, pytest.mark.docker]


@pytest.fixture
def birds() -> Iterator[tuple[Canary, Canary]]:
    with canary() as one, canary() as other:
        yield one, other


def tcp(bird: Canary) -> list[str]:
    """Who came by TCP; the canary's name server may be asked by others of the machine."""
    return [knock for knock in bird.knocks if knock.startswith("tcp")]


def attack(world: Place, runtime: str, opened: int, closed: int, *, env: str = "") -> dict[str, Any]:
    """attack.py in a sandbox with endpoints whose config opens exactly one port of the host."""
    config = (
        f"ports: {{web: 3000, api: 3001}}\nnetwork: {{host: [{opened}]}}\ndependencies: [python]\n"
        f"env: {{ATTACK: {env!r}}}\n"
    )
    place = world.workspace(f"attack-{runtime}{env}", config)
    (place / "attack.py").write_bytes((INSIDE / "attack.py").read_bytes())
    done = world.command(
        "run", str(place), "--runtime", runtime, "--", "python3", "/workspace/attack.py",
        str(world.port), str(opened), str(closed),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_one_port_of_the_host_is_open_and_no_other(
    world: Place, run: str, birds: tuple[Canary, Canary]
) -> None:
    """`network.host` opens one port, as moat-host. The gateway's and the second canary's stay shut.

    Policy and upstream each check this; with both checks taken out (`Policy.authority` and `Upstream.check`
    returning None for moat-host) the closed canary is reached as `proxied moat-host`, and this fails.
    """
    opened, closed = birds
    found = attack(world, RUNTIMES[run], opened.tcp, closed.tcp)
    reached = {
        name for name, said in found.items() if isinstance(said, str) and ("canary" in said or "runs" in said)
    }
    direct = {"open direct 127.63.0.1", "open direct moat-host"}
    assert reached == {"open proxied moat-host", *direct}, found
    assert tcp(closed) == []
    assert len(tcp(opened)) == len(reached)
    for name, said in found.items():
        if "gateway" in name:
            assert '"endpoints"' not in said
            assert "HTTP/1.1 200" not in said or "moat refused" in said


def test_the_way_in_cannot_be_bent(world: Place, run: str, birds: tuple[Canary, Canary]) -> None:
    """The container sees two sockets in a directory that it cannot change; the other sandbox sees none.

    With the directory bound writable (`read_only=False` in `Binds.make`) symlink, rename and bind succeed.
    """
    opened, closed = birds
    found = attack(world, RUNTIMES[run], opened.tcp, closed.tcp)
    assert found["others"] == []
    if run == "alpha":
        assert found["sockets"] == []
        return
    assert found["sockets"] == ["/run/moat/egress/dial.sock", "/run/moat/egress/proxy.sock"]
    for what in ("symlink", "unlink", "rename", "bind", "remount"):
        assert found[what] == "OSError", (what, found[what])
    assert found["obey"] in {"TimeoutError", "ConnectionRefusedError", "BlockingIOError"}, found["obey"]


def test_an_agent_that_ends_the_forwarder_only_loses_its_endpoints(
    world: Place, birds: tuple[Canary, Canary]
) -> None:
    """It may not take the forwarder's place either: the run hears one connection, the one from before the start.

    What a forwarder that obeys the agent could send is in tests/runtime/test_dial.py.
    """
    opened, _ = birds
    script = textwrap.dedent("""
        import glob, os, signal, socket, time
        for path in glob.glob("/proc/[0-9]*/cmdline"):
            pid = int(path.split("/")[2])
            if b"sandbox_init" in open(path, "rb").read() and pid not in (1, os.getpid()):
                os.kill(pid, signal.SIGKILL)
        control = socket.socket(socket.AF_UNIX)
        control.connect("/run/moat/egress/dial.sock")
        print("waiting", flush=True)
        try:
            print("heard", control.recv(1000), flush=True)
        except OSError as error:
            print("refused", flush=True)
        time.sleep(60)
    """)
    (world.workspace("forger") / "forge.py").write_text(script)
    config = "ports: {web: 3000}\ndependencies: [python]\n"
    run_id = world.start("forger", "docker", "python3", "/workspace/forge.py", config=config)
    log = world.home.run(run_id) / "output.log"
    wait_until(lambda: b"waiting" in log.read_bytes())
    answers = [world.ask("web.forger.localhost") for _ in range(3)]
    assert {answer.status for answer in answers} == {502}
    wait_until(
        lambda: log.read_bytes().splitlines() in ([b"waiting", b"refused"], [b"waiting", b"heard b''"])
    )
    assert world.command("stop", run_id, timeout=30).returncode == 0
    assert tcp(opened) == []


def test_another_user_of_the_machine_cannot_use_a_runs_ingress(world: Place, run: str) -> None:
    """Neither the run's sockets nor those of its container."""
    route = next(
        json.loads(path.read_bytes())
        for path in (world.home.endpoints / "routes").iterdir()
        if json.loads(path.read_bytes())["name"] == run
    )
    path = Path(route["endpoints"]["web"]["socket"])
    assert path.is_socket()
    code = "import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1]); print('reached')"
    paths = [path, *path.parent.parent.glob("sandbox/egress/*.sock")]
    assert len(paths) == (1 if run == "alpha" else 2)  # a container has its proxy.sock
    for each in paths:
        done = subprocess.run(
            ["setpriv", "--reuid=48211", "--regid=48211", "--clear-groups", "/usr/bin/python3", "-c", code, each],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 1
        assert "PermissionError" in done.stderr
    mine = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert mine.stdout == "reached\n", "the same as oneself"


def test_another_user_of_the_machine_cannot_use_the_gateway(world: Place) -> None:
    """Loopback is everybody's. With `owner` not asked, curl as another user gets the page and the index.

    One who hangs up at once, so that nobody can tell whose it was, gets nothing done either.
    """
    other = ["setpriv", "--reuid=48211", "--regid=48211", "--clear-groups"]
    curl = ["curl", "-sS", "-o", "-", "-w", "%{http_code}", "--resolve", f"*:{world.port}:127.0.0.1"]
    for url in (f"http://web.alpha.localhost:{world.port}/", f"http://localhost:{world.port}/"):
        mine = subprocess.run([*curl, url], capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
        assert mine.stdout.endswith("200")
        theirs = subprocess.run(
            [*other, *curl, url], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
        )
        assert theirs.stdout.endswith("403"), theirs
        assert "another user" in theirs.stdout
        assert "alpha" not in theirs.stdout
    code = (
        "import socket,sys\n"
        "s=socket.create_connection(('127.0.0.1',int(sys.argv[1])))\n"
        "s.sendall(b'POST /blind HTTP/1.1\\r\\nHost: web.blind.localhost\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n')\n"
        "s.close()\n"
    )
    run_id = world.start(
        "blind", "embedded", "python3", "-c",
        "import http.server as h\n"
        "class H(h.BaseHTTPRequestHandler):\n"
        "  def do_POST(self): print('POST', self.path, flush=True); self.send_error(404)\n"
        "print('up', flush=True); h.HTTPServer(('127.0.0.1',3000),H).serve_forever()",
    )  # fmt: skip
    log = world.home.run(run_id) / "output.log"
    wait_until(lambda: b"up" in log.read_bytes())
    for _ in range(20):
        subprocess.run([*other, "/usr/bin/python3", "-c", code, str(world.port)], check=True)
    assert world.ask("web.blind.localhost", "/seen", method="POST").status == 404
    text = log.read_bytes()
    assert b"POST /seen" in text
    assert b"blind" not in text
    world.command("stop", run_id)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_connection_whose_owner_cannot_be_told_is_nobodys(address: str) -> None:
    """Its row in the kernel's table says uid 0 then, which is root's: only one with an inode is believed."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as listener:
        with socket.create_connection(listener.getsockname()[:2]):
            accepted, _ = listener.accept()
            with accepted:
                assert owner(accepted) == os.getuid()
        socket.create_connection(listener.getsockname()[:2]).close()
        accepted, _ = listener.accept()
        with accepted:
            assert owner(accepted) is None


def test_moats_own_ports_are_no_endpoints(place: Place) -> None:
    """Behind 80, 443 and 3128 of a sandbox is the run's proxy with its credentials: a browser must not get there."""
    for port in (80, 443, 3128):
        done = place.command(
            "run",
            str(place.workspace("w", f"ports: {{web: {port}}}\n")),
            "--runtime",
            "embedded",
            "--",
            "true",
        )
        assert done.returncode == 2
        assert f"agent.yaml:1:14: port {port} is Moat's own in a sandbox" in done.stderr
        done = place.command(
            "run",
            str(place.workspace("v", "env: {}\n")),
            "--runtime",
            "embedded",
            "--port",
            f"web={port}",
            "--",
            "true",
        )
        assert done.returncode == 2
        assert f"moat: error: the endpoint web: port {port} is Moat's own in a sandbox" in done.stderr


def test_the_maker_of_sockets_ends_with_its_supervisor(place: Place) -> None:
    run_id = place.start("one", "embedded")
    pid = place.record(run_id)["pid"]

    def marked() -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != pid:
                try:
                    if run_id.encode() in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found

    assert marked()
    os.kill(pid, 9)
    wait_until(lambda: not marked(), 10)


def test_a_gateway_on_loopback_only_even_by_the_other_address(world: Place) -> None:
    for address in ("127.0.0.1", "::1"):
        assert world.ask("localhost", address=address).status == 200
    for address in ("127.0.0.2", "127.63.0.1"):
        with pytest.raises(OSError):
            socket.create_connection((address, world.port), timeout=2).close()
