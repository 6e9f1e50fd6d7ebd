"""The gateway's life: one for all, started once, surviving runs, ending by itself; ports and names that clash."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moat.errors import StartError
from moat.journal import read_lines
from moat.paths import Home
from moat.runtime.endpoints import routes, spawn
from moat.runtime.endpoints.routes import Endpoint, Route, Routes
from moat.runtime.records import Ownership
from tests.endpoints.conftest import Answer, Place, wait_until

pytestmark = pytest.mark.embedded


def gateways(place: Place) -> list[int]:
    """Pids of the gateways of this MOAT_HOME."""
    mark = f"MOAT_HOME={place.home.root}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
                if b"endpoints.gateway" in command and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def reached(place: Place, host: str) -> Answer | None:
    with contextlib.suppress(ConnectionError):
        answer = place.ask(host)
        return answer if answer.status == 200 else None
    return None


def test_it_survives_every_run_and_serves_the_others(place: Place) -> None:
    first = place.start("first", "embedded")
    second = place.start("second", "embedded")
    for name in ("first", "second"):
        wait_until(lambda name=name: place.ask(f"web.{name}.localhost").status == 200)
    (gateway,) = gateways(place)
    assert place.command("stop", first).returncode == 0, "the run that started it"
    assert place.ask("web.first.localhost").status == 404
    assert place.ask("web.second.localhost").status == 200
    assert gateways(place) == [gateway]
    os.kill(place.record(second)["pid"], signal.SIGKILL)
    wait_until(lambda: place.ask("web.second.localhost").status == 404, 5)
    assert place.ask("localhost").json() == {"runs": []}
    third = place.start("second", "embedded")
    wait_until(lambda: place.ask("web.second.localhost").status == 200)
    assert [path.stem for path in routes.directory(place.home).iterdir()] == [third], "the dead one is gone"
    assert gateways(place) == [gateway]
    lines = read_lines(place.home.run(first) / "journal.jsonl")
    events = [line for line in lines if line["event"].startswith("endpoint.")]
    url = f"https://web.first.localhost:{place.port}"
    assert events[0]["event"] == "endpoint.opened"
    assert events[0]["data"] == {"endpoint": "web", "port": 3000, "url": url}
    assert [line["event"] for line in events].count("endpoint.closed") == 5


def test_a_gateway_that_was_killed_comes_back_on_its_port(place: Place) -> None:
    place.start("one", "embedded")
    (gateway,), port = gateways(place), place.port
    os.kill(gateway, signal.SIGKILL)
    assert wait_until(lambda: reached(place, "web.one.localhost"), 15).status == 200
    assert place.port == port
    assert gateways(place) not in ([], [gateway])


def test_a_name_that_is_in_use_is_an_error_before_anything_is_made(place: Place) -> None:
    first = place.start("same", "embedded")
    done = place.command("run", str(place.workspace("other")), "--name", "same", "--", "true")
    assert done.returncode == 3
    assert f"moat: error: the run same ({first}) is alive and has endpoints under this name\n" in done.stderr
    assert "moat: hint: give this one another name (--name), or `moat stop" in done.stderr
    assert (
        place.command(
            "run",
            str(place.workspace("plain", "env: {}")),
            "--name",
            "same",
            "--runtime",
            "embedded",
            "--",
            "true",
        ).returncode
        == 0
    ), "without endpoints there is nothing to clash"
    assert place.command("stop", first).returncode == 0
    assert place.start("same", "embedded")


def test_a_command_that_has_ended_closes_its_endpoints(place: Place) -> None:
    done = place.command(
        "run", str(place.workspace("short")), "--name", "short", "--runtime", "embedded", "--port", "api=8000", "--",
        "sh", "-c", "echo $MOAT_URL_API; echo $MOAT_HOST_WEB",
    )  # fmt: skip
    assert done.stdout.split() == [
        f"https://api.short.localhost:{place.port}",
        f"web.short.localhost:{place.port}",
    ]
    assert place.ask("api.short.localhost").status == 404
    assert "ENDPOINTS" not in place.command("list").stdout
    failed = place.command("open", "short")
    assert (failed.returncode, failed.stderr.splitlines()[0]) == (
        3,
        "moat: error: short has ended (stopped)",
    )


# --- ports -------------------------------------------------------------------------------------------------


def taken(port: int) -> socket.socket:
    return socket.create_server(("127.0.0.1", port))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def test_a_configured_port_is_that_one_or_an_error(place: Place) -> None:
    port = free_port()
    place.home.root.mkdir(mode=0o700, exist_ok=True)
    place.home.config_file.write_text(f"endpoints:\n  port: {port}\n")
    with taken(port):
        done = place.command("run", str(place.workspace("w")), "--runtime", "embedded", "--", "true")
        assert done.returncode == 3
        assert f"moat: error: port {port} is in use on this machine" in done.stderr
        assert "endpoints.port in ~/.moat/config.yaml, or MOAT_ENDPOINT_PORT" in done.stderr
    place.start("w", "embedded")
    assert place.port == port
    other = place.environment | {"MOAT_ENDPOINT_PORT": str(free_port())}
    done = place.command("run", str(place.workspace("v")), "--runtime", "embedded", "--", "true", env=other)
    assert f"the gateway of endpoints runs on port {port}, MOAT_ENDPOINT_PORT says" in done.stderr


@pytest.mark.parametrize("value", ["0", "x", "70000", "-1"])
def test_a_port_that_is_none_is_an_error(place: Place, value: str) -> None:
    done = place.command(
        "run", str(place.workspace("w")), "--runtime", "embedded", "--", "true",
        env=place.environment | {"MOAT_ENDPOINT_PORT": value},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, f"moat: error: MOAT_ENDPOINT_PORT={value} is not a port\n")


@pytest.fixture
def small(tmp_path: Path) -> Home:
    return Home(tmp_path / "small")


def end(home: Home) -> None:
    about = json.loads((home.endpoints / "gateway.json").read_bytes())
    os.kill(about["pid"], signal.SIGKILL)
    wait_until(lambda: not spawn.alive(home))


def test_nobody_asked_for_a_port_the_next_free_one_is_taken_and_remembered(small: Home) -> None:
    first = free_port()
    with (
        taken(first),
        socket.create_server(("::1", first + 1), family=socket.AF_INET6),
        spawn.changing(small),
    ):
        chosen = spawn.ensure(small, spawn.Wanted(first, fixed=False))
    assert chosen >= first + 2, "one that is taken on ::1 only is taken as well"
    end(small)
    assert spawn.wanted_port(small) == spawn.Wanted(chosen, fixed=False)
    with spawn.changing(small):
        assert spawn.ensure(small, spawn.wanted_port(small)) == chosen
    end(small)


def test_many_at_once_start_one(small: Home) -> None:
    """With `changing` a no-op several are started, and all but one complain."""
    program = (
        "import sys, time; from pathlib import Path; from moat.paths import Home\n"
        "from moat.runtime.endpoints import spawn\n"
        "home = Home(Path(sys.argv[1]))\n"
        "time.sleep(max(0, float(sys.argv[3]) - time.time()))\n"  # all at one instant
        "with spawn.changing(home): print(spawn.ensure(home, spawn.Wanted(int(sys.argv[2]), fixed=False)))\n"
    )
    moment = str(time.time() + 3)
    command = [sys.executable, "-c", program, str(small.root), str(free_port()), moment]

    def call(_: int) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        ports = set(pool.map(call, range(8)))
    assert len(ports) == 1
    end(small)


def test_it_ends_some_time_after_the_last_run(small: Home) -> None:
    port = free_port()
    with spawn.changing(small):
        spawn.ensure(small, spawn.Wanted(port, fixed=True), linger=1)
        pid = json.loads((small.endpoints / "gateway.json").read_bytes())["pid"]
        ownership = Ownership(small.run("run_000000000001"))
        routes.add(small, Route("run_000000000001", "x", {"web": Endpoint(1, "/nowhere")}))
    time.sleep(5)
    assert spawn.port_of(small) == port, "a run that is alive keeps it"
    ownership.release()
    wait_until(lambda: not spawn.alive(small), 15)
    with socket.create_server(("127.0.0.1", port)):
        pass
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 10)
    assert not (small.endpoints / "gateway.json").exists()


def test_it_ends_when_its_home_is_deleted(small: Home) -> None:
    import shutil

    with spawn.changing(small):
        spawn.ensure(small, spawn.Wanted(free_port(), fixed=True))
    pid = json.loads((small.endpoints / "gateway.json").read_bytes())["pid"]
    shutil.rmtree(small.root)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 10)


# --- routes ------------------------------------------------------------------------------------------------


def test_routes_are_seen_at_once_and_only_of_the_living(small: Home) -> None:
    seen = Routes(small)
    assert seen.alive() == []
    for number in range(20):  # without a pause: the directory's time may not change in between
        run_id = f"run_{number:012x}"
        with Ownership(small.run(run_id)):
            routes.add(small, Route(run_id, f"n{number}", {"web": Endpoint(1, "/s")}))
            assert seen.find(f"n{number}") is not None
        assert seen.find(f"n{number}") is None
    with Ownership(small.run("run_aaaaaaaaaaaa")), Ownership(small.run("run_bbbbbbbbbbbb")):
        routes.add(small, Route("run_aaaaaaaaaaaa", "x", {}))
        with pytest.raises(StartError, match="alive and has endpoints under this name"):
            routes.add(small, Route("run_bbbbbbbbbbbb", "x", {}))
    assert len(routes.read_all(small)) == 1, "dead ones were removed"


def test_a_file_that_is_no_route_is_passed_over(small: Home) -> None:
    routes.directory(small).mkdir(parents=True)
    for number, text in enumerate(
        ["", "{", "[]", '{"id": 1}', '{"id":"a","name":"b","endpoints":{"c":{"x":1}}}']
    ):
        (routes.directory(small) / f"{number}.json").write_text(text)
    assert routes.read_all(small) == []
