"""Invariant 1: no credential in the sandbox, in any form, wherever one looks; invariant 3: only to its host.

How each was shown to fail: with the secret itself as the placeholder (granted.py) the hunt finds it; with
`_masked` returning its text (scrub.py) the echo brings it back; with `InjectionTable.site` ignoring `bound_to`
(inject.py), or without the comparison in `_authority_mismatch` (exchange.py) or the one in `_sni_check` (certs.py), the
stranger receives it or the exchange passes; with `leaks` returning None the placeholder travels in heads, with `guarded` false
(site_rules.py) in bodies, without its loop over `_at_home` to its own host's query; with `guarded` true
at every host the prompt is refused.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.conftest import HOST, OTHER, World

Attacker = Callable[[str, object], dict[str, Any]]


def request(path: str, host: str = HOST, fields: str = "", body: str = "") -> str:
    return (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{fields}"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    )


def step(name: str, send: str, host: str = HOST, **more: object) -> dict[str, object]:
    return {"name": name, "connect": f"{host}:443", "tls": host, "send": send, **more}


def test_no_place_holds_the_credential(attacker: Attacker, world: World) -> None:
    found = attacker("treasure", {"needles": {"credential": world.secret}, "since": world.since})
    assert found["counts"]["processes"] > 0
    assert found["counts"]["files"] > 3, "the hunt must have read something"
    assert found["places"]["credential"] == []


def test_the_hunt_finds_what_is_there(world: World, runtime: str) -> None:
    """The control: the placeholder, which is inside on purpose, is found by the same hunt."""
    done = world.command(
        "run", str(world.workspace("ws")), "--runtime", runtime, "--grant", "anthropic", "--",
        "sh", "-c", 'printf \'{"needles":{"p":"%s"},"since":%s}\' "$ANTHROPIC_API_KEY" '
        f"{world.since} > /tmp/plan; python3 /workspace/treasure.py /tmp/plan",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    places = json.loads(done.stdout)["places"]["p"]
    assert any(place.endswith("/environ") for place in places), places


def test_an_echo_does_not_bring_it_back(attacker: Attacker, world: World) -> None:
    """Header and body echo, plain and gzip: the origin got the credential, the sandbox never sees it."""
    before = len(world.origin.received)
    marks = {"x-api-key": "sk-placeholder"}
    fields = "".join(f"{k}: {v}\r\n" for k, v in marks.items())
    answers = attacker(
        "through_proxy",
        [
            step("plain", request("/plain", fields=fields, body="hello")),
            step("gzip", request("/gzip", fields=fields + "Accept-Encoding: gzip\r\n", body="hello")),
        ],
    )
    arrived = b"".join(bytes(log) for log in world.origin.received[before:])
    assert arrived.count(world.secret.encode()) >= 2, "the origin must have received the credential"
    everything = json.dumps(answers)
    assert " 200 " in answers["plain"].split("\r\n")[0]
    assert " 200 " in answers["gzip"].split("\r\n")[0]
    for form in (world.secret, base64.b64encode(world.secret.encode()).decode(), world.secret[10:40]):
        assert form not in everything


def test_what_cannot_be_searched_is_withheld_unless_the_user_lets_it_through(
    world: World, runtime: str
) -> None:
    """`network.unreadable`, from inside: the answer echoes the credential in a coding that Moat does not open.

    Seen to fail with `_scrubber_of` (download.py) passing always, and never.
    """
    plan = [step("echo", request("/unreadable", body="hello"))]
    withheld = world.probe(runtime, "through_proxy", plan)["echo"]
    assert withheld.split("\r\n")[0].startswith("HTTP/1.1 502 ")
    assert "X-Moat-Error: unreadable" in withheld
    assert "unreadable: pass" in withheld
    assert world.secret not in withheld

    place = world.workspace("passing")
    (place / "agent.yaml").write_text("dependencies: [python]\nnetwork:\n  unreadable: pass\n")
    (place / "plan.json").write_text(json.dumps(plan))
    done = world.command(
        "run", str(place), "--runtime", runtime, "--grant", "anthropic", "--",
        "python3", "/workspace/through_proxy.py",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    passed = json.loads(done.stdout)["echo"]
    assert passed.split("\r\n")[0].startswith("HTTP/1.1 200 ")
    assert world.secret in passed, "what the user let through"
    assert "network.unreadable is pass" in done.stderr
    run = json.loads(world.command("list", "--json").stdout)[0]["id"]
    assert "passed unchecked" in world.command("trace", "--network", run).stdout


def test_a_stranger_never_gets_it(attacker: Attacker, world: World) -> None:
    """The placeholder to another host, Host and SNI set to the credential's host, and the other way round."""
    answers = attacker(
        "through_proxy",
        [
            step("plain stranger", request("/", OTHER), OTHER),
            step("inner Host is ours", request("/", HOST), OTHER),
            step("SNI is ours", request("/", OTHER), OTHER, tls=HOST, verify=False),
            step("Host is theirs", request("/", OTHER), HOST),
            step("absolute form to ours", request(f"https://{HOST}/", HOST), OTHER),
            step("two hosts", request("/", HOST, f"Host: {OTHER}\r\n"), OTHER),
        ],
    )
    assert world.secret.encode() not in world.stranger.everything()
    for name in ("inner Host is ours", "SNI is ours", "Host is theirs", "absolute form to ours", "two hosts"):
        assert " 200 " not in answers[name].split("\r\n")[0], (name, answers[name][:200])


def test_the_placeholder_in_the_wrong_place_is_refused(world: World, runtime: str) -> None:
    """The leak guard: 403 inside the tunnel with the reason, and nothing of it reaches the stranger.

    As it is, escaped, in base64 and compressed; a prompt that quotes it to its own host passes as it is.
    """
    before, own = len(world.stranger.received), len(world.origin.received)
    said = world.probe(runtime, "misplace", {"own": HOST, "other": OTHER})
    placeholder = said.pop("placeholder").encode()
    status, code, body = said.pop("own body")
    assert (status, code) == (200, None)
    assert f"my key is {placeholder.decode()}" in body
    assert said.pop("own query")[:2] == [403, "credential-surface"]
    assert {name: tuple(answer[:2]) for name, answer in said.items()} == dict.fromkeys(
        said, (403, "credential-host")
    )
    assert not any(placeholder.decode() in answer[2] for answer in said.values())
    arrived = b"".join(bytes(log) for log in world.stranger.received[before:])
    assert placeholder[:16] not in arrived
    assert b"x" * 5000 in arrived  # of the stream, what came before it
    prompts = b"".join(bytes(log) for log in world.origin.received[own:])
    assert (prompts.count(placeholder), prompts.count(world.secret.encode())) == (1, 1)
    run = json.loads(world.command("list", "--json").stdout)[0]["id"]
    journal = world.command("audit", run, "--json").stdout
    assert '"credential-host"' in journal
    assert '"credential-surface"' in journal
    trace = world.command("trace", "--network", "--json", run).stdout
    assert world.secret not in trace + journal


def test_plain_http_gets_no_credential(attacker: Attacker, world: World) -> None:
    """Also at the very port that the credential is bound to, where it reaches the origin in clear text."""
    before, clear = len(world.origin.received), len(world.origin.plain)
    port = f"{HOST}:443"
    answers = attacker(
        "through_proxy",
        [
            {"name": "absolute", "connect": None, "tls": None,
             "send": f"GET http://{HOST}/ HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"},
            {"name": "tunnel", "connect": port, "tls": None, "send": request("/")},
            {"name": "absolute with port", "connect": None, "tls": None,
             "send": f"GET http://{port}/ HTTP/1.1\r\nHost: {port}\r\nConnection: close\r\n\r\n"},
            {"name": "tunnel with port", "connect": port, "tls": None, "send": request("/", port)},
        ],
    )  # fmt: skip
    assert len(world.origin.received) == before, "nothing went over TLS"
    arrived = world.origin.plain[clear:]
    assert len(arrived) == 2, "else nothing was tried"
    assert world.secret.encode() not in b"".join(arrived)
    for answer in answers.values():
        assert world.secret not in answer


@pytest.fixture(scope="module")
def neighbours(world: World) -> dict[str, str]:
    """What a living run of each runtime has in its workspace, in its arguments and in its log."""
    marks = {}
    for runtime in ("embedded", "docker"):
        mark = marks[runtime] = f"of-the-neighbour-{secrets.token_hex(16)}"
        place = world.workspace(f"neighbour-{runtime}")
        (place / "kept").write_text(mark)
        done = world.command(
            "run", str(place), "--runtime", runtime, "-d", "--name", f"neighbour-{runtime}", "--",
            "sh", "-c", "echo $0; sleep 3600", mark,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        log = Path(world.environment["MOAT_HOME"]) / "runs" / done.stdout.strip() / "output.log"
        deadline = time.monotonic() + 30
        while mark.encode() not in log.read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.1)
    return marks


def test_nothing_of_another_run_is_there(
    attacker: Attacker, world: World, neighbours: dict[str, str]
) -> None:
    """Invariant 7. Seen to fail with MOAT_HOME mounted (`mounts` in `Assembly._spec`)."""
    found = attacker("treasure", {"needles": neighbours, "since": world.since})
    assert found["places"] == {"embedded": [], "docker": []}


def test_another_run_has_its_own_credentials(world: World, runtime: str) -> None:
    """Invariant 7: beside a run that holds the grant, one without it, or with another, is not served with it.

    Seen to fail with all grants of the vault in `granted.prepare`.
    """
    other = world.start(runtime, f"beside-{runtime}", "--grant", "anthropic")
    before = len(world.origin.received)
    for grants in ((), ("linear",)):
        answers = world.probe(runtime, "through_proxy", [step("x", request("/"))], grants=grants)
        assert " 200 " in answers["x"].split("\r\n")[0], answers
    assert world.secret.encode() not in b"".join(bytes(x) for x in world.origin.received[before:])
    script = (
        "import os,socket,json\n"
        "own={'/run/moat/proxy.sock'}\n"
        "seen=[os.path.join(t,n) for t,d,f in os.walk('/') if not t.startswith(('/proc','/sys')) for n in f\n"
        "      if __import__('stat').S_ISSOCK(os.lstat(os.path.join(t,n)).st_mode)]\n"
        f"hit=[t for t,d,f in os.walk('/') if not t.startswith(('/proc','/sys')) and {other!r} in t]\n"
        "abstract=[l for l in open('/proc/net/unix') if '@' in l]\n"
        "print(json.dumps([seen, hit, abstract]))"
    )
    done = world.command(
        "run", str(world.workspace("ws")), "--runtime", runtime, "--", "python3", "-c", script
    )
    seen, hit, abstract = json.loads(done.stdout)
    assert [path for path in seen if "moat" in path and "/run/moat/" not in path] == []
    # The run's proxy, and where its forwarder hears which of its own ports are wanted.
    assert set(seen) <= {"/run/moat/egress/proxy.sock", "/run/moat/egress/dial.sock"}
    assert hit == []
    assert abstract == []
